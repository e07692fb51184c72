"""Certifies the candidates of a progressive pruning schedule (see `progressive.py`).

The total error is alpha = 0.05: over repeated runs the result exceeds the budget in at most
5 % of them. The fallback procedure divides it (Wiens 2003, described in
https://pmc.ncbi.nlm.nih.gov/articles/PMC3427907): the fallback candidates F are tested first,
in a fixed sequence, at alpha_F = 0.01. If all of F holds, alpha_F passes on and the trained
candidates are tested at 0.05, otherwise at 0.05 - alpha_F. With too few rows to prove anything
at 0.01, alpha_F is the full 0.05, and the trained candidates are tested only if all of F
holds. F is what `--effort quick` would try: a bisection on the select rows finds the last
candidate within the limit.
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
    SAFE_SHARE,
    Certify,
    Proofs,
    SearchResult,
    Trial,
    bisect_trials,
    conclude,
    none_found,
)
from .presets import ProgressiveSchedule
from .progressive import ProgressiveTrials, SearchActions, run_schedule

FALLBACK_CONFIDENCE = 0.99
"""Confidence level for fallback candidates: alpha = 0.01 of the total 0.05."""
FALLBACK_CHANGED, FALLBACK_LOST = 0.01, 0.25
"""A typical fallback changes this share of the answers (int8 alone does) and loses this share
of the limit. The level 0.99 is used if the rows can prove such a candidate."""


def search_progressively(
    schedule: ProgressiveSchedule,
    actions: SearchActions,
    limit: float,
    rows: int,
    fit: FitLosses,
) -> SearchResult:
    """Run a schedule and certify its results; the fallbacks first, see the module.

    Args:
        schedule: the candidates.
        actions: do the work.
        limit: the allowed loss.
        rows: number of certify rows.
        fit: fits the accuracy model to trials.

    Raises:
        PassError: no candidate can be built, no fallback either.
    """
    fallbacks: list[Trial] = []
    for pipeline in schedule.fallbacks:
        with suppress(PassError):  # recorded by `trial`; the trained candidates may work
            fallbacks.append(actions.trial(pipeline))
    if fallbacks and fallbacks[-1].loss <= limit:
        fallbacks += bisect_trials(schedule.deeper_fallbacks, actions.trial, limit)
    fastest: list[Trial] = []
    if actions.apart is not None:
        with suppress(PassError):  # recorded
            fastest.append(actions.trial(actions.apart))
    trained = run_schedule(schedule, actions, limit, fit, must=not fallbacks)
    trials = dict(enumerate((*fallbacks, *fastest, *trained.tried)))
    if not any(x.loss <= limit for x in trials.values()):
        return none_found(trials, limit)

    confidence = fallback_confidence(rows, limit)
    within = [x for x in fallbacks if x.loss <= limit]
    first, last_fallback = _certified(within, actions.certify, confidence)
    alpha = 1 - CONFIDENCE
    if last_fallback < len(within) - 1:
        alpha -= 1 - confidence
    safe = SAFE_SHARE * provable_loss(rows, limit)
    to_certify = list(_to_certify(trained, safe)) if alpha else []
    if to_certify and (added := _added([*trials.values()], to_certify[-1], actions, limit)):
        trials[len(trials)] = added
        to_certify.insert(len(to_certify) - (added.loss <= to_certify[-1].loss), added)
    within_limit = [x for x in fastest if x.loss <= limit and alpha]
    if within_limit:  # slower ones that lose more could only keep it from being certified
        least = within_limit[0].loss
        to_certify = [*(x for x in to_certify if x.loss <= least), *within_limit]
    proofs, last = _certified(to_certify, actions.certify, 1 - alpha)
    late = trained.out_of_time
    if not proofs:  # no trained candidate exists, or no error is left to test one
        return _fastest(conclude(trials, first, last_fallback, limit, late), actions)
    found = conclude(trials, proofs, last, limit, late)
    return _fastest(_with_fallbacks(found, first, last_fallback) if first else found, actions)


def fallback_confidence(rows: int, limit: float) -> float:
    """Confidence level for the fallbacks: 0.99, or 0.95 if so few rows prove little at 0.99.

    Decided before any certify row is used.
    """
    provable = provable_loss(rows, limit, FALLBACK_CHANGED, FALLBACK_CONFIDENCE)
    return FALLBACK_CONFIDENCE if provable >= FALLBACK_LOST * limit else CONFIDENCE


def _certified(
    trials: Sequence[Trial], certify: Certify, confidence: float
) -> tuple[Proofs, int]:
    """Certificates in turn until one fails, and the index of the last that holds."""
    proofs: Proofs = []

    def certificates() -> Iterator[Certificate]:
        for one in trials:
            proofs.append((one.pipeline, certify(one.pipeline, confidence)))
            yield proofs[-1][1]

    last = fixed_sequence(certificates())
    return proofs, last


def _to_certify(trials: ProgressiveTrials, safe_loss: float) -> Sequence[Trial]:
    """The last accepted trial, and before it the deepest with at most `safe_loss`.

    The first failure ends the certification, so the first trial must hold almost surely.
    Briefly trained ones near the limit failed (seen twice on SST-2). The choice depends on
    select rows alone.
    """
    last = trials.accepted[-1:]
    safe = [x for x in trials.accepted if x.loss <= safe_loss][-1:]
    return last if last == safe else [*safe, *last]


def _added(
    tried: Sequence[Trial], best: Trial, actions: SearchActions, limit: float
) -> Trial | None:
    """The trial of a candidate made of others, if it keeps the limit.

    It is chosen on select rows. Of it and the last trained candidate that which loses less is
    certified first.
    """
    pipeline = actions.extend(tried, best)
    if pipeline is None:
        return None
    with suppress(PassError):  # recorded by `trial`
        found = actions.trial(pipeline)
        return found if found.loss <= limit else None
    return None


def _with_fallbacks(found: SearchResult, first: Proofs, last: int) -> SearchResult:
    """Add the fallbacks' certificates; the last that holds wins if no trained one does."""
    made = replace(found, proofs=(*first, *found.proofs))
    if found.winner is not None or last < 0:
        return made
    reason = f"a safe candidate, without training; of those trained, {found.reason}"
    winner, certificate = first[last]
    return replace(made, winner=winner, certificate=certificate, reason=reason)


def _fastest(found: SearchResult, actions: SearchActions) -> SearchResult:
    """The result with the fastest of all certified candidates as the winner.

    All certificates that hold do so together. A cut to a measured speed-up may have come out
    slower than one to a sparsity.
    """
    certified = [x for x in found.proofs if x[1].holds]
    if len(certified) < 2:
        return found
    speeds: dict[Pipeline, float] = {}
    with suppress(PassError):  # none can be timed: the last one wins
        timed = actions.time_shapes([p for p, _ in certified])
        speeds = {x.pipeline: x.throughput for x in timed}
    winner, certificate = max(reversed(certified), key=lambda x: speeds.get(x[0], 0.0))
    if winner == found.winner:
        return found
    reason = "the fastest candidate that was certified, by the time of its shape"
    return replace(found, winner=winner, certificate=certificate, reason=reason)
