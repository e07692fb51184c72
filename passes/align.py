"""`align`: round masked FFN widths to a multiple that suits the target's kernels.

Matrix products are fastest at multiples of 8 or 16. To round up, the pass restores the most
important masked units (Fisher importance, https://arxiv.org/abs/2204.09656). To round down, it
masks the least important units.
Put `align` between a prune pass and `slice`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.pruning.importance import fisher


@dataclass(frozen=True)
class Align(Pass):
    """Round every FFN's width to the nearest multiple, by importance.

    Example: `prune{sparsity=0.6},align{multiple=16},slice`
    """

    name: ClassVar[str] = "align"
    multiple: int = field(
        default=16, metadata={"help": "widths are rounded to multiples of this"}
    )

    def __post_init__(self) -> None:
        if self.multiple < 1:
            raise ValueError(f"multiple must be 1 or more, not {self.multiple}")

    def requires(self, model: Model) -> None:
        """Refuse a model without masks whose widths are no multiples: no unit can return."""
        if model.masks.all_true and any(x.ffn % self.multiple for x in model.encoder.layers):
            raise PassError(
                "there is no mask left to round; put 'align' before 'slice'", exit_code=2
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """Return masks of the nearest widths. No whole FFN is added or removed."""
        counts = [self._width(m) for m in model.masks.ffn]
        if counts == [int(m.sum()) for m in model.masks.ffn]:
            return model
        whole = replace(model, masks=replace(model.masks, ffn=Masks.full(model.encoder).ffn))
        ffn = _round(fisher(whole, ctx).ffn, model.masks.ffn, counts)
        masks = Masks(heads=model.masks.heads, ffn=tuple(ffn), hidden=model.masks.hidden)
        return replace(model, masks=masks, notes={"ffn": counts})

    def _width(self, mask: Tensor) -> int:
        alive = int(mask.sum())
        nearest = max(1, (alive + self.multiple // 2) // self.multiple) * self.multiple
        return min(nearest, len(mask)) if alive else 0


def _round(
    scores: Sequence[Tensor], masks: Sequence[Tensor], counts: Sequence[int]
) -> list[Tensor]:
    """Masks that keep these counts: unmasked units first, then masked units by importance."""
    found = []
    for score, mask, count in zip(scores, masks, counts, strict=True):
        rank = score + mask * (score.max() + 1)
        kept = torch.zeros_like(mask)
        kept[rank.argsort(descending=True, stable=True)[:count]] = True
        found.append(kept)
    return found
