"""Run the progressive search of the efforts `standard` and `thorough` on an evaluator."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.timing.cost_table import cost_table

from .acquisition import TimedCandidate
from .bisection import SearchResult
from .cascades import bag_candidate, cascade_maker
from .evaluator import Evaluator
from .presets import (
    Effort,
    ProgressiveSchedule,
    ScheduleStep,
    minutes_left,
    progressive_schedule,
    rungs,
)
from .progressive import SearchActions
from .progressive_certificates import search_progressively
from .shape_timing import loss_fitter, time_candidates

CASCADES = 5
"""Number of cascades to try, at most."""


def search_default_schedule(  # noqa: PLR0917 - everything that a search depends on
    evaluator: Evaluator,
    effort: Effort,
    points: float,
    limit: float,
    limit_s: float | None,
    left_s: Callable[[], float],
) -> SearchResult:
    """Search with the effort's default schedule.

    Args:
        evaluator: builds, scores and certifies.
        effort: `standard` or `thorough`.
        points: the budget as a share; it chooses the first cut of the schedule.
        limit: the allowed loss in units of the metric.
        limit_s: the user's time limit in seconds; None = the effort's default.
        left_s: gives the seconds that remain for training.
    """

    def certify(pipeline: Pipeline, confidence: float) -> Certificate:
        return evaluator.certify(pipeline, limit, confidence)

    def time_shapes(space: Sequence[Pipeline]) -> Sequence[TimedCandidate]:
        return time_candidates(evaluator, space)

    rows = evaluator.certify_rows.scored_rows
    extend = cascade_maker(evaluator, limit, CASCADES)
    grant_minutes = minute_granter(evaluator.ctx.store, left_s)
    actions = SearchActions(
        evaluator.trial, certify, time_shapes, grant_minutes, extend, bag_candidate(evaluator)
    )
    schedule = _schedule(evaluator, effort, points, limit_s)
    return search_progressively(schedule, actions, limit, rows, loss_fitter(evaluator))


def minute_granter(
    store: Store, left_s: Callable[[], float]
) -> Callable[[ScheduleStep, int], float]:
    """A function that gives each step its training minutes, the same in a resumed run.

    `left_s` measures the time of this process only. For a resumed run, the remaining time
    follows from the last stored answer of the interrupted run.
    """
    end = math.inf

    def grant(step: ScheduleStep, number: int) -> float:
        nonlocal end

        def now() -> dict[str, float]:
            left = min(left_s(), end - time.monotonic())
            return {"minutes": minutes_left(step, left / 60, number), "left_s": left}

        name = f"minutes-{number}-{key(Pipeline(step.passes))}"
        resumed = store.has(name)
        kept = store.json(name, now)
        if resumed:
            spent = 60 * kept["minutes"] * step.trainings
            end = min(end, time.monotonic() + kept["left_s"] - spent)
        return float(kept["minutes"])

    return grant


def _schedule(
    evaluator: Evaluator, effort: Effort, points: float, limit_s: float | None
) -> ProgressiveSchedule:
    """The default schedule, in multiply-adds if times on this machine are unreliable."""
    model = evaluator.model

    def reason() -> dict[str, str]:
        early = replace(model.encoder, pool_early=model.encoder.reads_first)
        try:
            table = cost_table(replace(model, encoder=early), evaluator.ctx)
            table.limit_ms(rungs(effort, points)[0][0], "prune")
        except PassError as error:
            return {"not_measured": str(error)}
        return {}

    # Stored, because in a resumed run a second measurement may decide differently.
    why = evaluator.ctx.store.json("measured", reason).get("not_measured")
    if why:
        evaluator.ctx.progress.say(f"{why}\ncounting multiply-adds in place of milliseconds")
    lowered = not evaluator.targets[0].exact
    return progressive_schedule(effort, points, limit_s, model, why is None, lowered)
