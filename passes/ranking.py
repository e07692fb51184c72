"""Keeping a share of the units, ranked over all layers or within each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def check_ratio(ratio: float) -> None:
    """Refuse what is not a share."""
    if not 0 <= ratio <= 1:
        raise ValueError(f"ratio must be in [0, 1], not {ratio}")


def keep_ratio(
    scores: Sequence[Tensor], alive: Sequence[Tensor], share: float, scope: str
) -> tuple[Tensor, ...]:
    """Masks that keep `share` of the units, the most important of those still alive."""
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
