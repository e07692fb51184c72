"""Acquisition: searches a space of several dimensions, such as sparsity and multiplexed rows.

A candidate's throughput is measured before it is trained, because it depends on shapes alone.
Its loss is predicted by a model that is fitted to the trials (`accuracy_model`). With r the
throughput over the dense engine's, the next candidate i maximises

    a(i) = P(loss_i <= limit) * log(r_i / r_best),

where r_best is that of the fastest accepted trial, or 1. Candidates with
P(loss_i <= limit) < 0.1 are not tried. When no a(i) is positive, the accepted trials are
certified from the safest to the fastest. PruMUX (https://arxiv.org/abs/2305.14706) chooses
among the same candidates with an interpolated accuracy model; see `BilinearModel`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import CONFIDENCE, Certificate, fixed_sequence
from prumux.optimizer.pipeline.pipeline import Pipeline

from .accuracy_model import FitLosses, Shape
from .bisection import Certify, Proofs, SearchResult, Trial, conclude, none_found

FAIR_CHANCE = 0.1
"""The smallest probability of keeping the limit with which a candidate is tried."""


@dataclass(frozen=True)
class TimedCandidate:
    """A candidate's shape and throughput, known before it is trained."""

    pipeline: Pipeline
    shape: Shape
    throughput: float
    """Over the dense engine's."""


def search_by_acquisition(
    candidates: Sequence[TimedCandidate],
    trial: Callable[[Pipeline], Trial],
    certify: Certify,
    limit: float,
    out_of_time: Callable[[Pipeline], bool],
    *,
    fit: FitLosses,
    safe: float,
) -> SearchResult:
    """Search candidates in the order of the acquisition function.

    Args:
        candidates: at least one.
        trial: builds and scores one.
        certify: certifies one.
        limit: the allowed loss.
        out_of_time: True if no time is left for a candidate.
        fit: fits the accuracy model to trials.
        safe: as in `search_by_bisection`.
    """
    tried: dict[int, Trial] = {}
    failed: list[tuple[int, PassError]] = []
    late = False
    while (
        at := next_candidate(candidates, tried, limit, fit, [i for i, _ in failed])
    ) is not None:
        if tried and out_of_time(candidates[at].pipeline):
            late = True
            break
        try:
            tried[at] = trial(candidates[at].pipeline)
        except PassError as error:  # recorded by `trial`; other candidates may work
            failed.append((at, error))
    if failed and not tried:
        raise failed[-1][1]
    path = certification_order(candidates, tried, limit, safe)
    if not path:
        return none_found(tried, limit)
    proofs: Proofs = []

    def certificates() -> Iterator[Certificate]:
        for i in path:
            pipeline = candidates[i].pipeline
            proofs.append((pipeline, certify(pipeline, CONFIDENCE)))
            yield proofs[-1][1]

    return conclude(tried, proofs, fixed_sequence(certificates()), limit, late)


def next_candidate(
    candidates: Sequence[TimedCandidate],
    tried: Mapping[int, Trial],
    limit: float,
    fit: FitLosses,
    failed: Sequence[int] = (),
) -> int | None:
    """Index of the candidate with the largest acquisition value; None if none is positive."""
    accepted = [candidates[i].throughput for i, t in tried.items() if t.loss <= limit]
    fastest = max(accepted, default=1.0)
    shapes, losses = [candidates[i].shape for i in tried], [t.loss for t in tried.values()]
    model = fit(shapes, losses)

    def acquisition(i: int) -> float:
        chance = model.predict(candidates[i].shape).chance(limit)
        faster = math.log(candidates[i].throughput / fastest)
        return chance * faster if chance >= FAIR_CHANCE else 0.0

    free = [i for i in range(len(candidates)) if i not in tried and i not in failed]
    best = max(free, key=acquisition, default=None)
    if best is not None and acquisition(best) > 0:
        return best
    if not tried and free:  # no candidate has a fair chance: the safest one shows it
        return max(free, key=lambda i: model.predict(candidates[i].shape).chance(limit))
    return None


def certification_order(
    candidates: Sequence[TimedCandidate], tried: dict[int, Trial], limit: float, safe: float
) -> list[int]:
    """Accepted trials from the safest to the fastest; depends on the select rows alone.

    Leaves out trials that lose more than a faster one, and those before the fastest trial
    whose loss is at most `safe`.
    """
    accepted = [i for i, t in tried.items() if t.loss <= limit]
    accepted.sort(key=lambda i: (candidates[i].throughput, -tried[i].loss))
    front = [
        i
        for k, i in enumerate(accepted)
        if all(tried[other].loss > tried[i].loss for other in accepted[k + 1 :])
    ]
    safe_ones = [k for k, i in enumerate(front) if tried[i].loss <= safe]
    return front[safe_ones[-1] :] if safe_ones else front
