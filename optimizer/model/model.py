"""A model: sizes, weights, task and masks. All values are frozen; no tensor changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.tasks.task import Task

from .masks import Masks
from .sizes import Encoder
from .weights import expected_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Applied:
    """The receipt of one pass, written by the pipeline."""

    spec: str
    seconds: float
    parameters_before: int
    parameters_after: int
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Model:
    """The value that passes take and return. `after is before` means that nothing changed."""

    encoder: Encoder
    weights: Mapping[str, Tensor]
    """Exactly the names and shapes of `expected_shapes(encoder)`, float32."""
    task: Task
    masks: Masks
    kept_hidden: Tensor | None = None
    """Where hidden dimensions were cut out: which ones of the given model are left, int64."""
    tokenizer: PreTrainedTokenizerBase | None = None
    source: Mapping[str, str] = field(default_factory=dict)
    """Where the model came from: `name`, `model_type`, `digest`."""
    remarks: tuple[str, ...] = ()
    """Lines about the given checkpoint that a user should read."""
    kept_config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the given config.json that belong to other libraries; artifacts keep them."""
    history: tuple[Applied, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the last pass; the pipeline moves them into its receipt."""

    @property
    def living_hidden(self) -> tuple[Tensor, Tensor]:
        """Hidden dimensions that are not masked: here, and in the model as it was given."""
        here = self.masks.hidden.nonzero()[:, 0]
        return here, here if self.kept_hidden is None else self.kept_hidden[here]

    @property
    def stage(self) -> Literal["dense", "masked"]:
        """`masked` while some mask is not yet physical; never stored, always computed."""
        return "dense" if self.masks.all_true else "masked"

    def verify(self) -> None:
        """Check names, shapes, dtypes and masks against the sizes.

        Raises:
            VerifyError: names the first thing that is off, with both numbers.
        """
        expected = expected_shapes(self.encoder)
        _same_names(expected, self.weights)
        for name, shape in expected.items():
            found = tuple(self.weights[name].shape)
            if found != shape:
                raise VerifyError(f"weight '{name}' has shape {found}, its sizes say {shape}")
            if self.weights[name].dtype != torch.float32:
                raise VerifyError(
                    f"weight '{name}' is {self.weights[name].dtype}, not float32"
                )
        self.masks.verify(self.encoder)
        named = self.task.named_outputs
        if named and len(self.task.labels) != self.encoder.labels:
            raise VerifyError(
                f"{len(self.task.labels)} label names for {self.encoder.labels} labels"
            )


def _same_names(expected: Mapping[str, object], found: Mapping[str, object]) -> None:
    missing = sorted(expected.keys() - found.keys())
    extra = sorted(found.keys() - expected.keys())
    if missing or extra:
        text = f"missing: {_few(missing)}" if missing else ""
        text += (", " if missing and extra else "") + (
            f"extra: {_few(extra)}" if extra else ""
        )
        raise VerifyError(f"the weights do not fit the sizes; {text}")


def _few(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
