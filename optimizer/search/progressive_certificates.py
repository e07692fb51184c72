"""Certifies the candidates of a progressive pruning schedule (see `progressive.py`).

The total error is alpha = 0.05: in at most 5 % of repeated runs the result exceeds the budget.
The fallback procedure divides alpha between two groups of candidates (Wiens 2003, described in
https://pmc.ncbi.nlm.nih.gov/articles/PMC3427907):

1. The fallback candidates are tested in a fixed sequence, at alpha_F = 0.01: the first ones,
   and the deepest cut that is almost sure of a certificate. If the rows are too few to prove
   anything at 0.01, alpha_F is 0.05.
2. All other candidates are tested in a fixed sequence, see `certification_order.py`: trained
   ones, further cuts as of `--effort quick`, cascades. The level is 0.05 if all of the first
   group were certified, else 0.05 - alpha_F. At level 0 nothing is tested.

Both groups and both orders are fixed before any certify row is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import CONFIDENCE, Certificate, fixed_sequence
from prumux.optimizer.certificate.provable import provable_loss
from prumux.optimizer.pipeline.pipeline import Pipeline

from .accuracy_model import FitLosses
from .bisection import (
    Certify,
    Proofs,
    SearchResult,
    Trial,
    bisect_trials,
    conclude,
    none_found,
    try_each,
)
from .certification_order import SURE, certification_order
from .presets import ProgressiveSchedule
from .progressive import SearchActions, run_schedule

FALLBACK_CONFIDENCE = 0.99
"""Confidence level for fallback candidates: alpha = 0.01 of the total 0.05."""
FALLBACK_CHANGED, FALLBACK_LOST = 0.01, 0.25
"""A typical fallback: its share of changed answers (as with int8 alone), and its loss as a
share of the limit. Level 0.99 is used if the rows can prove such a candidate."""


def search_progressively(
    schedule: ProgressiveSchedule,
    actions: SearchActions,
    limit: float,
    rows: int,
    fit: FitLosses,
) -> SearchResult:
    """Run a schedule and certify its candidates, the fallbacks first (see the module).

    Args:
        schedule: the candidates.
        actions: the callables that do the work.
        limit: the allowed loss.
        rows: number of certify rows.
        fit: fits the accuracy model to trials.

    Raises:
        PassError: no candidate can be built, not even a fallback.
    """
    fallbacks, deeper = try_each(schedule.fallbacks, actions.trial), list[Trial]()
    if fallbacks and fallbacks[-1].loss <= limit:
        deeper = bisect_trials(schedule.deeper_fallbacks, actions.trial, limit)
    fastest = try_each([actions.apart] if actions.apart else [], actions.trial)
    trained = run_schedule(schedule, actions, limit, fit, must=not fallbacks)
    others = [*deeper, *fastest, *trained.tried]
    trials = dict(enumerate((*fallbacks, *others)))
    if not any(x.loss <= limit for x in trials.values()):
        return none_found(trials, limit)

    confidence = fallback_confidence(rows, limit)
    within = [x for x in fallbacks if x.loss <= limit]
    sure = [x for x in deeper if x.estimate.chance(limit, rows, confidence) >= SURE]
    within += sure[-1:]
    first, last_fallback = _certified(within, actions.certify, confidence)
    alpha = 1 - CONFIDENCE
    if last_fallback < len(within) - 1:
        alpha -= 1 - confidence
    proofs, last = Proofs(), -1
    if alpha:
        start = min((x.macs for x in within), default=None)
        added = try_each(actions.extend([*trials.values()], start), actions.trial)
        trials |= dict(enumerate(added, len(trials)))
        others = [x for x in (*others, *added) if x not in within]
        order = certification_order(others, limit, rows, start, 1 - alpha)
        proofs, last = _certified(order, actions.certify, 1 - alpha)
    late = trained.out_of_time
    if not proofs:  # no trained candidate, or no alpha left to test one
        return _fastest(conclude(trials, first, last_fallback, limit, late), actions)
    found = conclude(trials, proofs, last, limit, late)
    return _fastest(_with_fallbacks(found, first, last_fallback) if first else found, actions)


def fallback_confidence(rows: int, limit: float) -> float:
    """Confidence level for the fallbacks: 0.99, or 0.95 if the rows prove too little at 0.99.

    The number of rows decides, so no certify row is used for it.
    """
    provable = provable_loss(rows, limit, FALLBACK_CHANGED, FALLBACK_CONFIDENCE)
    return FALLBACK_CONFIDENCE if provable >= FALLBACK_LOST * limit else CONFIDENCE


def _certified(
    trials: Sequence[Trial], certify: Certify, confidence: float
) -> tuple[Proofs, int]:
    """Certify trials until one fails. Also give the index of the last valid certificate."""
    proofs: Proofs = []

    def certificates() -> Iterator[Certificate]:
        for one in trials:
            proofs.append((one.pipeline, certify(one.pipeline, confidence)))
            yield proofs[-1][1]

    last = fixed_sequence(certificates())
    return proofs, last


def _with_fallbacks(found: SearchResult, first: Proofs, last: int) -> SearchResult:
    """Add the fallbacks' certificates. The last valid one wins if no trained one does."""
    made = replace(found, proofs=(*first, *found.proofs))
    if found.winner is not None or last < 0:
        return made
    reason = f"a safe candidate, without training; of those trained, {found.reason}"
    winner, certificate = first[last]
    return replace(made, winner=winner, certificate=certificate, reason=reason)


def _fastest(found: SearchResult, actions: SearchActions) -> SearchResult:
    """The result with the fastest certified candidate as the winner.

    All certificates hold together, so any certified candidate may win. The last one is not
    always the fastest: a cut to a measured speed-up may be slower than one to a sparsity.
    """
    certified = [x for x in found.proofs if x[1].holds]
    if len(certified) < 2:
        return found
    speeds: dict[Pipeline, float] = {}
    with suppress(PassError):  # no candidate can be timed: the last one wins
        timed = actions.time_shapes([p for p, _ in certified])
        speeds = {x.pipeline: x.throughput for x in timed}
    winner, certificate = max(reversed(certified), key=lambda x: speeds.get(x[0], 0.0))
    if winner == found.winner:
        return found
    reason = "the fastest candidate that was certified, by the time of its shape"
    return replace(found, winner=winner, certificate=certificate, reason=reason)
