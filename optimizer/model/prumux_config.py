"""A Hugging Face config for the `config.json` of an optimised model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from transformers import PreTrainedConfig


class PrumuxConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """The config that `artifact.to_config` writes. `num_labels` and `id2label` work as usual.

    `PrumuxConfig(**to_config(model))` describes a model. `PrumuxConfig()` describes none.
    """

    model_type = "prumux"
    register_models: ClassVar[Callable[[], object]] = dict
    """Registers the model classes with the Auto classes. `autoclass` sets this function."""

    def __init__(
        self,
        *,
        encoder: Mapping[str, Any] | None = None,
        heads_per_layer: Sequence[int] = (),
        ffn_per_layer: Sequence[int] = (),
        mux: Mapping[str, Any] | None = None,
        prumux_format: int = 1,
        source: Mapping[str, str] | None = None,
        second: Mapping[str, Any] | None = None,
        pad_token_id: int | None = 0,
        **kwargs: Any,
    ) -> None:
        # An Auto class makes a config before it makes a model.
        type(self).register_models()
        self.encoder = None if encoder is None else dict(encoder)
        self.heads_per_layer = list(heads_per_layer)
        self.ffn_per_layer = list(ffn_per_layer)
        self.mux = None if mux is None else dict(mux)
        self.prumux_format = prumux_format
        self.source = dict(source or {})
        self.second = None if second is None else dict(second)
        self.pad_token_id = pad_token_id
        super().__init__(**kwargs)

    @property
    def hidden_size(self) -> int | None:
        """Width of the states. sentence-transformers reads this property."""
        return None if self.encoder is None else int(self.encoder["hidden"])

    def to_dict(self) -> dict[str, Any]:
        """All fields. The number of labels in the sizes is set to `num_labels`."""
        found: dict[str, Any] = super().to_dict()
        if self.encoder is not None and not self.encoder.get("sentence"):
            found["encoder"] = self.encoder | {"labels": self.num_labels}
        if self.second is not None:
            sizes = self.second["encoder"] | {"labels": self.num_labels}
            found["second"] = self.second | {"encoder": sizes}
        return found

    def to_diff_dict(self) -> dict[str, Any]:
        """The saved fields. Label names are always included, even default ones."""
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        found: dict[str, Any] = super().to_diff_dict()
        return found | labels
