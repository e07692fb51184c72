"""The search of an effort that trains, on a model and its data."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.timing.cost_table import cost_table

from .acquisition import Candidate
from .bisection import Found
from .certificate import Certificate
from .presets import Family, Step, family, minutes_left, rungs
from .progressive import Hands
from .progressive_certificates import climb
from .shape_timing import candidates, fitter

if TYPE_CHECKING:
    from prumux.optimizer.run.job import Plan


def climbed(todo: Plan, limit: float, left_s: Callable[[], float]) -> Found:
    """What `climb` finds in the default family.

    Args:
        todo: the job.
        limit: the most that may be lost.
        left_s: seconds that are left for training.
    """
    bench = todo.bench

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        return bench.certify(pipeline, limit, confidence)

    def look(space: Sequence[Pipeline]) -> Sequence[Candidate]:
        return candidates(bench, space)

    granted = granting(bench.ctx.store, left_s)
    hands = Hands(bench.trial, prove, look, granted)
    return climb(_family(todo), hands, limit, len(bench.certify_rows), fitter(bench))


def granting(store: Store, left_s: Callable[[], float]) -> Callable[[Step, int], float]:
    """Says how long a step may train; kept, so that a resumed run goes on with the same.

    `left_s` knows of this process only. What a run had left when it was killed follows from
    what was granted last and from what was left then.
    """
    end = math.inf

    def granted(step: Step, number: int) -> float:
        nonlocal end

        def now() -> dict[str, float]:
            left = min(left_s(), end - time.monotonic())
            return {"minutes": minutes_left(step, left / 60, number), "left_s": left}

        name = f"minutes-{number}-{key(step.text)}"
        resumed = store.has(name)
        kept = store.json(name, now)
        if resumed:
            spent = 60 * kept["minutes"] * step.trainings
            end = min(end, time.monotonic() + kept["left_s"] - spent)
        return float(kept["minutes"])

    return granted


def _family(todo: Plan) -> Family:
    """The default family, in multiply-adds where this machine's clock cannot be relied on."""
    bench, request = todo.bench, todo.request
    points = request.budget.limit(1.0) if request.budget else 0.0

    def reason() -> dict[str, str]:
        early = replace(bench.model.encoder, pool_early=bench.model.encoder.pooled)
        try:
            table = cost_table(replace(bench.model, encoder=early), bench.ctx)
            table.limit_ms(rungs(request.effort, points)[0][0], "prune")
        except PassError as error:
            return {"not_measured": str(error)}
        return {}

    # Kept, because a second measurement might say otherwise, and a resumed run must not.
    why = bench.ctx.store.json("measured", reason).get("not_measured")
    if why:
        bench.ctx.progress.say(f"{why}\ncounting multiply-adds in place of milliseconds")
    measured, lowered, model = why is None, not bench.targets[0].exact, bench.model
    return family(request.effort, points, request.time_limit_s, model, measured, lowered)
