"""Marks the least important attention heads for removal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

from prumux.optimizer.context import Context
from prumux.optimizer.ir import Masks, Model
from prumux.optimizer.passbase import Pass

from .importance import fisher
from .ranking import check_ratio, keep_ratio

Scope = Literal["global", "layer"]


@dataclass(frozen=True)
class PruneHeads(Pass):
    """Mark the least important attention heads for removal."""

    name: ClassVar[str] = "prune-heads"
    marks: ClassVar[bool] = True
    ratio: float = field(metadata={"help": "share of all heads to remove, in [0, 1]"})
    scope: Scope = field(
        default="global", metadata={"help": "rank all layers together, or each on its own"}
    )

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def run(self, model: Model, ctx: Context) -> Model:
        """Heads [H] of every layer, by Fisher importance."""
        if self.ratio == 0:
            return model
        scores = fisher(model, ctx).heads
        heads = keep_ratio(scores, model.masks.heads, 1 - self.ratio, self.scope)
        masks = Masks(heads=heads, ffn=model.masks.ffn, hidden=model.masks.hidden)
        return replace(model, masks=masks, notes={"heads": [int(m.sum()) for m in heads]})
