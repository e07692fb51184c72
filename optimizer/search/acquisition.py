"""Searches a space of more than one dimension: pruned how far, how many rows in one.

A candidate's throughput is measured before it is trained, since it depends on sizes alone.
What it loses is learnt from trials (`surrogate`). The next to try is where most may be won:
the chance that it keeps the limit times the logarithm of how much faster it is than the
fastest so far. When nothing faster has a fair chance, those that kept the limit are certified,
from the safest to the fastest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.pipeline.pipeline import Pipeline

from .accuracy_model import Fit, Shape
from .bisection import Found, Prove, Trial, conclude, none_found
from .certificate import CONFIDENCE, Certificate, fixed_sequence

FAIR_CHANCE = 0.1
"""A candidate is tried only with such a chance to keep the limit."""


@dataclass(frozen=True)
class Candidate:
    """What is known of a pipeline before it is tried."""

    pipeline: Pipeline
    shape: Shape
    throughput: float
    """Times the dense engine's."""


def explore(
    candidates: Sequence[Candidate],
    trial: Callable[[Pipeline], Trial],
    prove: Prove,
    limit: float,
    out_of_time: Callable[[Pipeline], bool],
    *,
    fitted: Fit,
    safe: float,
) -> Found:
    """Search candidates in any order; see the module.

    Args:
        candidates: at least one.
        trial: builds and scores one.
        prove: certifies one.
        limit: the most that may be lost.
        out_of_time: whether there is no time left for a candidate.
        fitted: learns what candidates lose from trials.
        safe: as in `find`.
    """
    tried: dict[int, Trial] = {}
    failed: list[tuple[int, PassError]] = []
    late = False
    while (
        at := proposed(candidates, tried, limit, fitted, [i for i, _ in failed])
    ) is not None:
        if tried and out_of_time(candidates[at].pipeline):
            late = True
            break
        try:
            tried[at] = trial(candidates[at].pipeline)
        except PassError as error:  # recorded where it occurred; the others may still do
            failed.append((at, error))
    if failed and not tried:
        raise failed[-1][1]
    path = to_prove(candidates, tried, limit, safe)
    if not path:
        return none_found(tried, limit)
    proofs: list[tuple[Pipeline, Certificate]] = []

    def certificates() -> Iterator[Certificate]:
        for i in path:
            proofs.append((candidates[i].pipeline, prove(candidates[i].pipeline, CONFIDENCE)))
            yield proofs[-1][1]

    return conclude(tried, proofs, fixed_sequence(certificates()), limit, late)


def proposed(
    candidates: Sequence[Candidate],
    tried: Mapping[int, Trial],
    limit: float,
    fitted: Fit,
    failed: Sequence[int] = (),
) -> int | None:
    """Index of the candidate to try next, None if nothing is worth it."""
    kept = [candidates[i].throughput for i, t in tried.items() if t.loss <= limit]
    fastest = max(kept, default=1.0)
    shapes, losses = [candidates[i].shape for i in tried], [t.loss for t in tried.values()]
    model = fitted(shapes, losses)

    def gain(i: int) -> float:
        chance = model.predict(candidates[i].shape).chance(limit)
        faster = math.log(candidates[i].throughput / fastest)
        return chance * faster if chance >= FAIR_CHANCE else 0.0

    free = [i for i in range(len(candidates)) if i not in tried and i not in failed]
    best = max(free, key=gain, default=None)
    if best is not None and gain(best) > 0:
        return best
    if not tried and free:  # nothing has a fair chance: the safest shows it
        return max(free, key=lambda i: model.predict(candidates[i].shape).chance(limit))
    return None


def to_prove(
    candidates: Sequence[Candidate], tried: dict[int, Trial], limit: float, safe: float
) -> list[int]:
    """Who is certified, in this order: it depends on the select rows alone.

    From the safest to the fastest, without those that a faster one beats in its loss as well,
    and beginning with the fastest of the clearly safe.
    """
    kept = [i for i, t in tried.items() if t.loss <= limit]
    kept.sort(key=lambda i: (candidates[i].throughput, -tried[i].loss))
    front = [
        i
        for k, i in enumerate(kept)
        if all(tried[other].loss > tried[i].loss for other in kept[k + 1 :])
    ]
    sound = [k for k, i in enumerate(front) if tried[i].loss <= safe]
    return front[sound[-1] :] if sound else front
