"""The default search of each effort: its candidates, and their shares of training time.

`quick` tries independent pruned candidates, without training. `standard` and `thorough`
train. Training is expensive, so their candidates form one progressive pruning schedule: each
candidate starts from the one before, is pruned further and trained again. If a run stops
early, all smaller cuts are finished.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import find_pass

Effort = Literal["quick", "standard", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
LIMIT_S: dict[Effort, float] = {"standard": 1800, "thorough": 7200}
"""Default time limits, in seconds."""
BRIEF: dict[Effort, float] = {"standard": 0.03, "thorough": 0.02}
"""Share of the time limit for each brief training. The last training gets the rest."""
LADDERS: dict[Effort, tuple[tuple[float, float], ...]] = {
    "standard": (
        *((1.5, 0.35), (2, 0.55), (3, 0.72), (4.2, 0.81), (5.5, 0.865)),
        *((7.5, 0.91), (10, 0.94), (14, 0.96), (20, 0.975), (28, 0.983)),
    ),
    "thorough": (
        *((2, 0.55), (3, 0.72), (5, 0.85), (8, 0.92), (10, 0.94), (14, 0.96), (20, 0.975)),
        (28, 0.983),
    ),
}
"""Rungs: a speed-up, and the sparsity in multiply-adds that replaces it if timing fails."""
TIGHT = 0.015
"""Budgets below this start at the ladder's first rung, others at the second."""
LONG_SHARE = 0.45
"""Share of the time limit that brief trainings must leave for the last training."""
REFIT_MINUTES = 1.0
"""Most minutes to reserve for pruning, refitting and scoring around a training."""
LEAST_SHARE = 0.3
"""A training starts only if at least this share of its minutes is left."""
FALLBACK_SPARSITIES = 0.25, 0.5
"""Sparsity of the fallback candidate, for budgets below `TIGHT` and for others. A fallback is
not trained, so it cannot have memorised the select rows."""
DEEPER_STEP, DEEPEST = 0.05, 0.9
"""Step between the sparsities of further fallback candidates, and the largest sparsity."""


@dataclass(frozen=True)
class ScheduleStep:
    """Passes that continue from the previous candidate, and their training time."""

    passes: tuple[Pass, ...]
    minutes: float
    """Minutes of each training; infinite = all remaining minutes."""
    least_minutes: float
    """Fewest minutes a training with which the step is started."""
    reserve_minutes: float = 0.0
    """Minutes that must remain after the step."""
    refit_minutes: float = REFIT_MINUTES
    """Minutes of the step for work other than training."""

    @property
    def trainings(self) -> int:
        """Number of passes that train."""
        return sum(x.training is not None for x in self.passes)

    @property
    def untrained(self) -> tuple[Pass, ...]:
        """The passes before the final training; () if one of them trains, too."""
        *before, last = self.passes
        alone = last.training is not None and not any(x.training for x in before)
        return tuple(before) if alone else ()

    def timed(self, minutes: float) -> tuple[Pass, ...]:
        """The passes, with so many minutes for each training."""
        return tuple(x.with_minutes(minutes) for x in self.passes)


@dataclass(frozen=True)
class ProgressiveSchedule:
    """The candidates of progressive pruning. Each continues from the one before."""

    start: Pipeline
    cuts: tuple[ScheduleStep, ...]
    """Steps that prune, each further than the one before."""
    mixes: tuple[ScheduleStep, ...]
    """Steps that multiplex, after any cut; those with the fewest rows a pass come first."""
    final: ScheduleStep
    """The long training of the last accepted candidate."""
    fallbacks: tuple[Pipeline, ...]
    """Slightly changed candidates without training, the least changed first.

    If no trained candidate is certified, the last certified fallback is the result."""
    deeper_fallbacks: tuple[Pipeline, ...] = ()
    """The last fallback, pruned further in steps, as `quick` would prune it.

    A bisection finds the last one within the limit."""

    def candidates(self) -> tuple[Pipeline, ...]:
        """All fallbacks, and every cut with its brief training, without mixes and `final`."""
        found, pipeline = [*self.fallbacks, *self.deeper_fallbacks], self.start
        for step in self.cuts:
            pipeline = pipeline.then(*step.timed(step.minutes))
            found.append(pipeline)
        return tuple(found)


def exact_pipeline() -> Pipeline:
    """A pipeline that makes the model faster without a change of its answers."""
    return _pipeline(_make("pool-early"))


def rungs(effort: Effort, points: float) -> tuple[tuple[float, float], ...]:
    """The rungs for a budget of `points`, which is a share: 0.02 = 2 points."""
    return LADDERS[effort][int(points >= TIGHT) :]


def progressive_schedule(  # noqa: PLR0917 - everything that a schedule depends on
    effort: Effort,
    points: float,
    limit_s: float | None,
    model: Model,
    measured: bool = True,
    lowered: bool = False,
) -> ProgressiveSchedule:
    """The schedule of an effort that trains.

    Args:
        effort: `standard` or `thorough`.
        points: the allowed loss, a share: 0.02 = 2 points.
        limit_s: the time limit in seconds; None = the effort's default.
        model: the given model.
        measured: True = prune to measured speed-ups; False = to shares of multiply-adds.
        lowered: whether candidates run in a lower precision. The lower precision alone is
            then a fallback.
    """
    total = (limit_s or LIMIT_S[effort]) / 60
    brief = max(0.01, round(total * BRIEF[effort], 2))
    refit = min(REFIT_MINUTES, brief)

    def step(*passes: Pass) -> ScheduleStep:
        return ScheduleStep(passes, brief, LEAST_SHARE * brief, LONG_SHARE * total, refit)

    def cut(speedup: float, sparsity: float) -> ScheduleStep:
        amount = {"speedup": speedup} if measured else {"sparsity": sparsity, "of": "macs"}
        return step(*_cut_passes(effort, amount))

    mixes = find_pass("mux").choices(model)
    return ProgressiveSchedule(
        start=exact_pipeline(),
        cuts=tuple(cut(*rung) for rung in rungs(effort, points)),
        mixes=tuple(step(x, _make("distill")) for x in mixes),
        final=ScheduleStep((_make("distill"),), math.inf, brief, refit_minutes=refit),
        fallbacks=_fallbacks(points, lowered),
        deeper_fallbacks=_deeper_fallbacks(points),
    )


def default_space(
    effort: Effort, points: float, limit_s: float | None, model: Model
) -> tuple[Pipeline, ...]:
    """The candidates of an effort. For the arguments see `progressive_schedule`."""
    if effort == "quick":
        return tuple(_pruned(x) for x in find_pass("prune").choices(model))
    return progressive_schedule(effort, points, limit_s, model).candidates()


def minutes_left(step: ScheduleStep, left: float, number: int) -> float:
    """Minutes for each training of a step; 0 = the step is not started.

    Args:
        step: the step to start.
        left: minutes until the time limit.
        number: number of trainings before this step. With 0, the step gets its full time in
            any case.
    """
    if number == 0:
        return step.minutes
    spare = (left - step.reserve_minutes) / step.trainings - step.refit_minutes
    spare = round(spare, 2)
    return min(step.minutes, spare) if spare >= step.least_minutes else 0.0


def _cut_passes(effort: Effort, amount: dict[str, Any]) -> Sequence[Pass]:
    """Passes of a cut: `standard` prunes and refits, `thorough` learns masks."""
    cut, train = _make("slice"), _make("distill")
    if effort == "standard":
        return _make("prune", **amount), cut, _make("reconstruct"), train
    return _make("learn-masks", **amount), cut, train


def _fallbacks(points: float, lowered: bool) -> tuple[Pipeline, ...]:
    """The fallback candidates. Under a tight budget, the lower precision alone comes first."""
    sparsity = FALLBACK_SPARSITIES[points >= TIGHT]
    pruned = _pruned(_make("prune", sparsity=sparsity, of="macs"))
    return (exact_pipeline(), pruned) if lowered and points < TIGHT else (pruned,)


def _deeper_fallbacks(points: float) -> tuple[Pipeline, ...]:
    first = FALLBACK_SPARSITIES[points >= TIGHT]
    steps = range(1, round((DEEPEST - first) / DEEPER_STEP) + 1)
    shares = [round(first + DEEPER_STEP * i, 2) for i in steps]
    return tuple(_pruned(_make("prune", sparsity=x, of="macs")) for x in shares)


def _pruned(pruning: Pass) -> Pipeline:
    """A pruned candidate without training."""
    return _pipeline(_make("pool-early"), pruning, _make("slice"), _make("reconstruct"))


def _pipeline(*passes: Pass) -> Pipeline:
    return Pipeline(passes)


def _make(name: str, **options: Any) -> Pass:
    return find_pass(name)(**options)
