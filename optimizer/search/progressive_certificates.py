"""Certifies the candidates of a progressive pruning schedule (see `progressive.py`).

The total error is alpha = 0.05: in at most 5 % of repeated runs the result exceeds the budget.
The fallback procedure divides alpha between two groups of candidates (Wiens 2003, described in
https://pmc.ncbi.nlm.nih.gov/articles/PMC3427907):

1. The fallback candidates are tested in a fixed sequence, at alpha_F = 0.01. If the rows are
   too few to prove anything at 0.01, alpha_F is 0.05.
2. The trained candidates are tested in a fixed sequence. The level is 0.05 if all fallback
   candidates were certified, else 0.05 - alpha_F. At level 0 nothing is tested.

The fallback candidates are those that `--effort quick` would try. A bisection on the select
rows finds the last one within the limit.
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
    if within_limit:  # a slower one that loses more could end the sequence early
        least = within_limit[0].loss
        to_certify = [*(x for x in to_certify if x.loss <= least), *within_limit]
    proofs, last = _certified(to_certify, actions.certify, 1 - alpha)
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


def _to_certify(trials: ProgressiveTrials, safe_loss: float) -> Sequence[Trial]:
    """The trained trials to certify: the deepest safe one, then the last accepted one.

    A safe trial loses at most `safe_loss` on the select rows. The first failure ends the
    certification, so the first trial must almost surely be certified. Two runs on SST-2 began
    with a briefly trained trial near the limit, which failed. Select rows alone decide.
    """
    last = trials.accepted[-1:]
    safe = [x for x in trials.accepted if x.loss <= safe_loss][-1:]
    return last if last == safe else [*safe, *last]


def _added(
    tried: Sequence[Trial], best: Trial, actions: SearchActions, limit: float
) -> Trial | None:
    """The trial of the candidate that `extend` makes; None if it fails or is above the limit.

    Select rows decide. Of this candidate and the last trained one, the one with the smaller
    loss is certified first.
    """
    pipeline = actions.extend(tried, best)
    if pipeline is None:
        return None
    with suppress(PassError):  # recorded by `trial`
        found = actions.trial(pipeline)
        return found if found.loss <= limit else None
    return None


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
