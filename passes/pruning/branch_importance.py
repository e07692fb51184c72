"""Importance of a branch for every number of kept units: Fisher or second-order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context

from .allocate import summed_importance, with_counts
from .branch_options import BranchImportance
from .importance import fisher
from .second_order import second_order

KeepCounts = Callable[[Sequence[int]], Model]
"""Takes a count for each branch, all attention then all FFN; returns the masked model."""


def branch_importance(
    model: Model, ctx: Context, by: Literal["fisher", "second-order"]
) -> tuple[BranchImportance, KeepCounts]:
    """Return the importance of every count, and a function that masks a model to counts."""
    masks = (*model.masks.heads, *model.masks.ffn)
    if by == "second-order":
        removals = second_order(model, ctx)
        return removals.values(model.masks), lambda counts: removals.keep(model, counts)
    scores = fisher(model, ctx)
    importance = [
        summed_importance(score, mask, range(len(mask) + 1))
        for score, mask in zip((*scores.heads, *scores.ffn), masks, strict=True)
    ]

    def keep(counts: Sequence[int]) -> Model:
        return replace(model, masks=with_counts(model.masks, scores, counts))

    return importance, keep
