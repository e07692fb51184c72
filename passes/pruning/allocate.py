"""Choose how many units every branch keeps: the most importance within a cost limit.

A branch is the attention or the FFN of one layer. Keeping its n best units has a value (their
summed importance) and a cost. This is a knapsack problem with one choice per branch. The
solution removes a whole branch if its best units are not worth the fixed cost of the branch.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prumux.optimizer.model.masks import Masks

from .importance import Scores


@dataclass(frozen=True)
class BranchOptions:
    """Possible counts of kept units of a branch, and the value and cost of each count."""

    counts: tuple[int, ...]
    """Counts of kept units, rising from 0."""
    values: tuple[float, ...]
    costs: tuple[float, ...]


def allocate(branches: Sequence[BranchOptions], limit: float) -> list[int]:
    """Choose a count for each branch: greatest total value at a total cost up to `limit`.

    The algorithm walks along the upper concave hull of every branch from its cheapest point,
    and takes the step with the best value per cost first. The result is the optimum of the
    relaxed knapsack; it differs from the true optimum by less than one step of one branch. The
    rest of the limit is spent on counts between the points of the hull.

    Raises:
        ValueError: the model exceeds `limit` even without any units.
    """
    hulls = [_hull(branch) for branch in branches]
    at = [0] * len(branches)
    spent = sum(o.costs[h[0]] for o, h in zip(branches, hulls, strict=True))
    if spent > limit:
        raise ValueError(
            f"the limit {limit:.4g} is below the cost {spent:.4g} of an empty model"
        )
    queue = [
        (-_slope(branches[b], hulls[b], 0), b)
        for b in range(len(branches))
        if len(hulls[b]) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, b = heapq.heappop(queue)
        branch, hull = branches[b], hulls[b]
        step = branch.costs[hull[at[b] + 1]] - branch.costs[hull[at[b]]]
        if spent + step > limit:
            continue  # another branch may still have a step that fits
        spent += step
        at[b] += 1
        if at[b] + 1 < len(hull):
            heapq.heappush(queue, (-_slope(branch, hull, at[b]), b))
    reached = [h[i] for h, i in zip(hulls, at, strict=True)]
    return [
        o.counts[i] for o, i in zip(branches, _fill(branches, reached, limit), strict=True)
    ]


def keep_best(
    scores: Sequence[Tensor], counts: Sequence[int], alive: Sequence[Tensor]
) -> list[Tensor]:
    """Masks that keep the `counts` most important unmasked units of each branch."""
    masks = []
    for score, count, mask in zip(scores, counts, alive, strict=True):
        order = torch.where(mask, score, -1.0).argsort(descending=True, stable=True)
        kept = torch.zeros_like(mask)
        kept[order[:count]] = True
        masks.append(kept & mask)
    return masks


def summed_importance(
    score: Tensor, alive: Tensor, counts: Sequence[int]
) -> tuple[float, ...]:
    """Summed importance of the n best unmasked units, for every n in `counts`."""
    ordered = score[alive].double().sort(descending=True).values
    total = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    return tuple(float(total[min(n, len(ordered))]) for n in counts)


def with_counts(masks: Masks, scores: Scores, counts: Sequence[int]) -> Masks:
    """Masks that keep the `counts` most important units of every branch.

    `counts` lists all attention branches, then all FFN branches.
    """
    half = len(masks.heads)
    heads = keep_best(scores.heads, counts[:half], masks.heads)
    ffn = keep_best(scores.ffn, counts[half:], masks.ffn)
    return Masks(heads=tuple(heads), ffn=tuple(ffn), hidden=masks.hidden)


def _fill(branches: Sequence[BranchOptions], at: Sequence[int], limit: float) -> list[int]:
    """Take steps that still fit, best value per cost first. Returns the new indices."""
    at = list(at)
    values = [np.array(branch.values) for branch in branches]
    costs = [np.array(branch.costs) for branch in branches]
    left = limit - sum(c[i] for c, i in zip(costs, at, strict=True))
    while True:
        best, step = 0.0, (0, 0)
        for b, i in enumerate(at):
            gain, run = values[b] - values[b][i], costs[b] - costs[b][i]
            fits = (gain > 0) & (run <= left)
            rise = np.where(fits, gain / np.maximum(run, 1e-12), 0.0)
            if rise.max() > best:
                best, step = float(rise.max()), (b, int(rise.argmax()))
        if best == 0:
            return at
        b, j = step
        left -= float(costs[b][j] - costs[b][at[b]])
        at[b] = j


def _hull(branch: BranchOptions) -> list[int]:
    """Indices of the upper concave hull of (cost, value), cheapest first."""
    order = sorted(
        range(len(branch.counts)), key=lambda i: (branch.costs[i], -branch.values[i])
    )
    hull: list[int] = []
    for i in order:
        if hull and branch.values[i] <= branch.values[hull[-1]]:
            continue
        while len(hull) > 1 and _rise(branch, hull[-2], hull[-1]) <= _rise(
            branch, hull[-1], i
        ):
            hull.pop()
        hull.append(i)
    return hull


def _rise(branch: BranchOptions, i: int, j: int) -> float:
    run = branch.costs[j] - branch.costs[i]
    gain = branch.values[j] - branch.values[i]
    return gain / run if run > 0 else float("inf")


def _slope(branch: BranchOptions, hull: list[int], at: int) -> float:
    return _rise(branch, hull[at], hull[at + 1])
