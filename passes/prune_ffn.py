"""Marks the least important FFN units for removal."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

from prumux.optimizer.context import Context
from prumux.optimizer.ir import Masks, Model
from prumux.optimizer.passbase import Pass

from .importance import fisher
from .prune_heads import Scope
from .ranking import check_ratio, keep_ratio


@dataclass(frozen=True)
class PruneFfn(Pass):
    """Mark the least important FFN units for removal."""

    name: ClassVar[str] = "prune-ffn"
    marks: ClassVar[bool] = True
    ratio: float = field(metadata={"help": "share of all FFN units to remove, in [0, 1]"})
    scope: Scope = field(
        default="global", metadata={"help": "rank all layers together, or each on its own"}
    )

    def __post_init__(self) -> None:
        check_ratio(self.ratio)

    def run(self, model: Model, ctx: Context) -> Model:
        """Units [F] of every layer, by Fisher importance."""
        if self.ratio == 0:
            return model
        scores = fisher(model, ctx).ffn
        ffn = keep_ratio(scores, model.masks.ffn, 1 - self.ratio, self.scope)
        masks = Masks(heads=model.masks.heads, ffn=ffn, hidden=model.masks.hidden)
        return replace(model, masks=masks, notes={"ffn": [int(m.sum()) for m in ffn]})
