"""Acquisition: searches a space of several dimensions, such as sparsity and multiplexed rows.

A candidate's throughput is measured before training, because it depends on shapes alone. A
model that is fitted to the trials (`accuracy_model`) predicts its loss. Let r_i be the ratio
of candidate i's throughput to the dense engine's. The next candidate maximises

    a(i) = P(loss_i <= limit) * log(r_i / r_best),

where r_best is the ratio of the fastest accepted trial, or 1 without one. Candidates with
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
"""A candidate is tried only with at least this probability of a loss within the limit."""


@dataclass(frozen=True)
class TimedCandidate:
    """A candidate with its shape and throughput, which are known before training."""

    pipeline: Pipeline
    shape: Shape
    throughput: float
    """Ratio to the dense engine's throughput."""


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
        candidates: the candidates, at least one.
        trial: builds and scores a candidate.
        certify: certifies a candidate.
        limit: the allowed loss.
        out_of_time: True if no time is left for a candidate.
        fit: fits the accuracy model to trials.
        safe: see `search_by_bisection`.
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
    if not tried and free:  # no candidate has a fair chance: try the safest
        return max(free, key=lambda i: model.predict(candidates[i].shape).chance(limit))
    return None


def certification_order(
    candidates: Sequence[TimedCandidate], tried: dict[int, Trial], limit: float, safe: float
) -> list[int]:
    """Indices of the trials to certify, from the safest to the fastest.

    The order depends on the select rows alone. It leaves out trials with a loss above the
    limit, trials that lose at least as much as a faster one, and trials that are slower than
    the fastest one with a loss of at most `safe`.
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
