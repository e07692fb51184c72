"""The candidates to certify in turn: the sequence with the largest expected speed-up.

The first failure ends a sequence of certificates, so a risky step may lose all that would come
after it. Let p_k be the chance that candidate k is certified, and c_k its multiply-adds. All
candidates answer the same rows, so a riskier one is rarely certified if a surer one failed.
With the chance e = `SURPRISE` of such a surprise, the chosen sequence maximises

    V = sum over k of p_k (1 - e)^(k - 1) log(c_(k-1) / c_k),

where c_0 is the cost if nothing is certified, by dynamic programming. Candidates are taken
by falling chance and falling cost. One that is neither surer nor cheaper than another is
left out. Select rows alone decide. The order is that of Pareto testing, Laufer-Goldshtein et
al. 2023, https://arxiv.org/abs/2210.07913
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from prumux.optimizer.certificate.certificate import CONFIDENCE

from .unseen_loss import LossEstimate

SURE = 0.95
"""A chance at which a certificate is almost sure."""

SURPRISE = 0.05
"""The chance that a candidate fails although a riskier one would be certified."""


class Estimated(Protocol):
    """A candidate with its multiply-adds and its expected loss."""

    @property
    def macs(self) -> float:
        """Multiply-adds for one row."""

    @property
    def estimate(self) -> LossEstimate:
        """The expected loss on unseen rows."""


T = TypeVar("T", bound=Estimated)


def certification_order(
    candidates: Sequence[T],
    limit: float,
    rows: int,
    start_macs: float | None,
    confidence: float = CONFIDENCE,
) -> list[T]:
    """The candidates to certify, in turn.

    Their expected losses are within the limit. If nothing remains without a certificate, the
    fastest almost sure candidate comes first, or else the surest one, whatever its loss.

    Args:
        candidates: the candidates.
        limit: the allowed loss.
        rows: number of certify rows.
        start_macs: multiply-adds of the model that remains if nothing is certified; None =
            nothing remains. Slower candidates are left out.
        confidence: the level of the certificates.
    """

    def chance(x: T) -> float:
        return x.estimate.chance(limit, rows, confidence)

    start = math.inf if start_macs is None else start_macs
    front = cheaper_and_cheaper((x for x in candidates if x.macs < start), chance)
    first: list[T] = []
    if start_macs is None and front:
        first = [x for x in front if chance(x) >= SURE][-1:] or front[:1]
        start = first[0].macs
    later = [(x, chance(x)) for x in front if x.macs < start and x.estimate.loss <= limit]
    return first + _best_sequence(later, start)


def cheaper_and_cheaper(candidates: Iterable[T], chance: Callable[[T], float]) -> list[T]:
    """Candidates by falling chance, without those that a surer one undercuts in cost."""
    front: list[T] = []
    for one in sorted(candidates, key=lambda x: (-chance(x), x.macs)):
        if not front or one.macs < front[-1].macs:
            front.append(one)
    return front


def _best_sequence(front: list[tuple[T, float]], start_macs: float) -> list[T]:
    """The part of a front that maximises V of the module, in its order."""
    costs = [start_macs, *(x.macs for x, _ in front)]
    values, following = [0.0] * len(costs), [0] * len(costs)  # 0 = the sequence ends
    for i in reversed(range(len(front))):
        for j in range(i + 1, len(costs)):
            gain = math.log(max(costs[i], 1) / max(costs[j], 1))
            value = front[j - 1][1] * gain + (1 - SURPRISE) * values[j]
            if value > values[i]:
                values[i], following[i] = value, j
    order, at = [], 0
    while at := following[at]:
        order.append(front[at - 1][0])
    return order
