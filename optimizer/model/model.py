"""A model: sizes, weights, task and masks. All values are frozen, and no tensor changes."""

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
    """The record of one applied pass, written by the pipeline."""

    spec: str
    seconds: float
    parameters_before: int
    parameters_after: int
    notes: Mapping[str, Any] = field(default_factory=dict)


def rule_text(encoder: Encoder, threshold: float, max_share: float) -> str:
    """The text form of a second stage: its sizes and rule. The text identifies a cascade."""
    return f"{encoder} below {threshold!r}, at most {max_share!r} of a batch"


@dataclass(frozen=True, eq=False)
class SecondStage:
    """The larger model of a cascade, and the rule that selects its rows.

    The margin of a row is the difference between its two best logits in the first stage. Rows
    with a margin below `threshold` are deferred: the second stage answers them.
    """

    model: Model
    """The larger model. It is not multiplexed and has no second stage."""
    threshold: float
    share: float
    """Share of deferred rows in the data that the threshold was chosen on."""
    max_share: float = 1.0
    """At most this share of a batch is deferred, rounded up to a whole row. Rows with the
    smallest margins come first."""

    @property
    def cost_share(self) -> float:
        """Expected share of rows that the second stage answers."""
        return min(self.share, self.max_share)

    def __str__(self) -> str:
        return rule_text(self.model.encoder, self.threshold, self.max_share)

    def verify(self, first: Model) -> None:
        """Check the second stage. The inputs and outputs of both stages must be the same.

        Raises:
            VerifyError: the message names the fault.
        """
        self.model.verify()
        if self.model.second is not None or self.model.encoder.mux:
            raise VerifyError("the second stage of a cascade is one model without mixed rows")
        for name in ("labels", "vocab", "token_types", "pooled"):
            one, two = getattr(first.encoder, name), getattr(self.model.encoder, name)
            if one != two:
                raise VerifyError(f"first and second stage differ: {name} is {one} and {two}")
        if not self.threshold >= 0 or not 0 < self.max_share <= 1 or not 0 <= self.share <= 1:
            raise VerifyError(f"the second stage's rule is off: {self}")


@dataclass(frozen=True, eq=False)
class Model:
    """The value that passes take and return. A pass that changes nothing returns its input."""

    encoder: Encoder
    weights: Mapping[str, Tensor]
    """float32 tensors with exactly the names and shapes of `expected_shapes(encoder)`."""
    task: Task
    masks: Masks
    kept_hidden: Tensor | None = None
    """The remaining hidden dimensions of the given model, int64; None = all."""
    tokenizer: PreTrainedTokenizerBase | None = None
    kept_pieces: tuple[int, ...] | None = None
    """The remaining ids of the given tokenizer, in order; None = no piece was removed."""
    source: Mapping[str, str] = field(default_factory=dict)
    """The origin of the model: `name`, `model_type`, `digest`."""
    remarks: tuple[str, ...] = ()
    """Warnings about the given checkpoint, one line each."""
    kept_config: Mapping[str, Any] = field(default_factory=dict)
    """Keys of the given config.json that belong to other libraries. Artifacts keep them."""
    second: SecondStage | None = None
    """In a cascade, the stage that answers the rows with small margins."""
    history: tuple[Applied, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)
    """Facts from the last pass. The pipeline moves them to the pass's `Applied`."""

    @property
    def living_hidden(self) -> tuple[Tensor, Tensor]:
        """Unmasked hidden dimensions, as indices in this model and in the given model."""
        here = self.masks.hidden.nonzero()[:, 0]
        return here, here if self.kept_hidden is None else self.kept_hidden[here]

    @property
    def stage(self) -> Literal["dense", "masked"]:
        """`masked` if some mask is not yet sliced, else `dense`. Computed, never stored."""
        return "dense" if self.masks.all_true else "masked"

    def verify(self) -> None:
        """Check names, shapes, dtypes and masks against the sizes.

        Raises:
            VerifyError: the message names the first fault, with both numbers.
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
        if self.second is not None:
            self.second.verify(self)


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
