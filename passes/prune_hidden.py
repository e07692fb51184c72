"""`prune-hidden`: mark hidden dimensions for removal, the same dimensions in every layer.

The pass keeps the dimensions of greatest Fisher importance, which Kwon et al.
(https://arxiv.org/abs/2204.09656) use for heads and FFN units. `slice` cuts the other
dimensions from the embeddings, all maps and LayerNorms. Use this pass if pruning only heads
and FFN units does not give the speed-up. Put `reconstruct` or `distill` after it to restore
accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

import torch

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.families.sentence import hidden_is_output
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.pruning.importance import hidden_fisher

MULTIPLE = 8
"""The search tries only multiples of this size."""


@dataclass(frozen=True)
class PruneHidden(Pass):
    """Mark the least important hidden dimensions for removal.

    Example: `prune-hidden{ratio=0.25},slice,distill`
    """

    name: ClassVar[str] = "prune-hidden"
    masks: ClassVar[Literal["adds"]] = "adds"
    keep: int | None = field(default=None, metadata={"help": "number of dimensions to keep"})
    ratio: float | None = field(
        default=None, metadata={"help": "share of the dimensions to remove, in [0, 1)"}
    )

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.ratio is None):
            raise ValueError("give one of keep=256 and ratio=0.25")
        if self.keep is not None and self.keep < 1:
            raise ValueError(f"keep must be 1 or more, not {self.keep}")
        if self.ratio is not None and not 0 <= self.ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), not {self.ratio}")

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Sizes from eleven twelfths of the dimensions down to a half."""
        size = model.encoder.hidden
        steps = {round(size * share / 12 / MULTIPLE) * MULTIPLE for share in range(6, 12)}
        return [cls(keep=n) for n in sorted(steps, reverse=True) if 0 < n < size]

    def requires(self, model: Model) -> None:
        """Refuse embedding models, and more dimensions than the model has."""
        size = model.encoder.hidden
        if hidden_is_output(model.encoder):
            raise PassError(
                f"the {size} hidden dimensions are the entries of this model's embeddings, so "
                "prune-hidden would cut those\nuse prune, which cuts heads and FFN units",
                exit_code=2,
            )
        if self.keep is not None and self.keep > size:
            raise PassError(
                f"keep={self.keep} hidden dimensions, the model has {size}; "
                f"use prune-hidden{{keep={size}}} or less",
                exit_code=2,
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """Return a mask by Fisher importance. Dimensions masked before count as removed."""
        alive = model.masks.hidden
        count = self.keep or max(1, round((1 - (self.ratio or 0)) * len(alive)))
        if count >= int(alive.sum()):
            return model
        scores = torch.where(alive, hidden_fisher(model, ctx), -1.0)
        kept = torch.zeros_like(alive)
        kept[scores.argsort(descending=True, stable=True)[:count]] = True
        masks = replace(model.masks, hidden=kept)
        return replace(model, masks=masks, notes={"hidden": count})
