"""Chooses how much of every branch to keep: the most importance that a cost limit buys.

Each branch (attention or FFN of one layer) offers counts n with a value, the summed importance
of its n best units, and a cost. Whole branches go when their first units do not pay for what
the branch costs by merely being there.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from prumux.optimizer.model.ir import Masks

from .importance import Scores


@dataclass(frozen=True)
class Offer:
    """Counts that a branch may keep, rising from 0, with value and cost of each."""

    counts: tuple[int, ...]
    values: tuple[float, ...]
    costs: tuple[float, ...]


def allocate(offers: Sequence[Offer], limit: float) -> list[int]:
    """Counts per branch of greatest total value whose total cost is at most `limit`.

    Walks the upper hull of every branch from its cheapest point, best value per cost first:
    the optimum of the relaxed knapsack, off by less than one step of one branch. What is left
    of the limit then goes to counts between the hull's, where they fit.

    Raises:
        ValueError: even keeping nothing costs more than `limit`.
    """
    hulls = [_hull(offer) for offer in offers]
    at = [0] * len(offers)
    spent = sum(o.costs[h[0]] for o, h in zip(offers, hulls, strict=True))
    if spent > limit:
        raise ValueError(
            f"the limit {limit:.4g} is below the cost {spent:.4g} of an empty model"
        )
    queue = [
        (-_slope(offers[b], hulls[b], 0), b) for b in range(len(offers)) if len(hulls[b]) > 1
    ]
    heapq.heapify(queue)
    while queue:
        _, b = heapq.heappop(queue)
        offer, hull = offers[b], hulls[b]
        step = offer.costs[hull[at[b] + 1]] - offer.costs[hull[at[b]]]
        if spent + step > limit:
            continue  # another branch may still have a step that fits
        spent += step
        at[b] += 1
        if at[b] + 1 < len(hull):
            heapq.heappush(queue, (-_slope(offer, hull, at[b]), b))
    reached = [h[i] for h, i in zip(hulls, at, strict=True)]
    return [o.counts[i] for o, i in zip(offers, _fill(offers, reached, limit), strict=True)]


def best(
    scores: Sequence[Tensor], counts: Sequence[int], alive: Sequence[Tensor]
) -> list[Tensor]:
    """Masks that keep the `counts` most important living units of each branch."""
    masks = []
    for score, count, mask in zip(scores, counts, alive, strict=True):
        order = torch.where(mask, score, -1.0).argsort(descending=True, stable=True)
        kept = torch.zeros_like(mask)
        kept[order[:count]] = True
        masks.append(kept & mask)
    return masks


def values(score: Tensor, alive: Tensor, counts: Sequence[int]) -> tuple[float, ...]:
    """Summed importance of the n best living units, for every n in `counts`."""
    ordered = score[alive].double().sort(descending=True).values
    total = torch.cat([torch.zeros(1, dtype=torch.float64), ordered.cumsum(0)])
    return tuple(float(total[min(n, len(ordered))]) for n in counts)


def with_counts(masks: Masks, scores: Scores, counts: Sequence[int]) -> Masks:
    """Masks that keep the best units; `counts` lists all attention branches, then all FFN."""
    half = len(masks.heads)
    heads = best(scores.heads, counts[:half], masks.heads)
    ffn = best(scores.ffn, counts[half:], masks.ffn)
    return Masks(heads=tuple(heads), ffn=tuple(ffn), hidden=masks.hidden)


def _fill(offers: Sequence[Offer], at: Sequence[int], limit: float) -> list[int]:
    """Indices after the steps that still fit, best value per cost first."""
    at = list(at)
    values = [np.array(offer.values) for offer in offers]
    costs = [np.array(offer.costs) for offer in offers]
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


def _hull(offer: Offer) -> list[int]:
    """Indices of the upper concave hull of (cost, value), cheapest first."""
    order = sorted(range(len(offer.counts)), key=lambda i: (offer.costs[i], -offer.values[i]))
    hull: list[int] = []
    for i in order:
        if hull and offer.values[i] <= offer.values[hull[-1]]:
            continue
        while len(hull) > 1 and _rise(offer, hull[-2], hull[-1]) <= _rise(offer, hull[-1], i):
            hull.pop()
        hull.append(i)
    return hull


def _rise(offer: Offer, i: int, j: int) -> float:
    run = offer.costs[j] - offer.costs[i]
    gain = offer.values[j] - offer.values[i]
    return gain / run if run > 0 else float("inf")


def _slope(offer: Offer, hull: list[int], at: int) -> float:
    return _rise(offer, hull[at], hull[at + 1])
