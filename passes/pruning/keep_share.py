"""Keep a share of the units of one kind: the code of `prune-heads` and `prune-ffn`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass

from .importance import fisher


@dataclass(frozen=True)
class RankedPrune(Pass):
    """A pass that marks the least important units of one kind for removal."""

    masks: ClassVar[Literal["adds"]] = "adds"
    units: ClassVar[Literal["heads", "ffn"]]
    ratio: float = field(metadata={"help": "share of all units to remove, in [0, 1]"})
    scope: Literal["global", "layer"] = field(
        default="global", metadata={"help": "rank units over all layers, or within each layer"}
    )

    def __post_init__(self) -> None:
        if not 0 <= self.ratio <= 1:
            raise ValueError(f"ratio must be in [0, 1], not {self.ratio}")

    def run(self, model: Model, ctx: Context) -> Model:
        """Return masks by Fisher importance. Units masked before count as removed."""
        if self.ratio == 0:
            return model
        scores = getattr(fisher(model, ctx), self.units)
        alive = getattr(model.masks, self.units)
        kept = keep_ratio(scores, alive, 1 - self.ratio, self.scope)
        masks = replace(model.masks, **{self.units: kept})  # type: ignore[arg-type]
        return replace(model, masks=masks, notes={self.units: [int(m.sum()) for m in kept]})


def keep_ratio(
    scores: Sequence[Tensor], alive: Sequence[Tensor], share: float, scope: str
) -> tuple[Tensor, ...]:
    """Masks that keep `share` of all units: the most important units not yet masked."""
    if scope == "layer":
        return tuple(_top([s], [m], share)[0] for s, m in zip(scores, alive, strict=True))
    return _top(scores, alive, share)


def _top(
    scores: Sequence[Tensor], alive: Sequence[Tensor], share: float
) -> tuple[Tensor, ...]:
    flat = torch.cat(list(scores))
    mask = torch.cat(list(alive))
    count = min(round(share * len(flat)), int(mask.sum()))
    kept = torch.zeros_like(mask)
    kept[torch.where(mask, flat, -1.0).argsort(descending=True, stable=True)[:count]] = True
    return torch.split(kept, [len(s) for s in scores])
