"""The default search of each effort: its candidates, and how training time is divided.

`quick` tries pruned candidates by themselves, without training. `standard` and `thorough`
train. Training is expensive, so their candidates form one progressive pruning schedule: each
starts from the one before it, is pruned further and trained again. A run that stops at any
time has all smaller cuts finished.
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
"""Time limits where the user gives none."""
BRIEF: dict[Effort, float] = {"standard": 0.03, "thorough": 0.02}
"""Share of the time limit for each brief training; the last training gets the rest."""
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
"""Speed-ups, each with the sparsity in multiply-adds that replaces it where timing fails."""
TIGHT = 0.015
"""Budgets below this start at the ladder's first rung, others at the second."""
LONG_SHARE = 0.45
"""Share of the time limit that the brief trainings leave for the last one."""
REFIT_MINUTES = 1.0
"""Minutes reserved for pruning, refitting and scoring around a training, at most."""
LEAST_SHARE = 0.3
"""A training is not started if less than this share of its minutes is left."""
FALLBACK_SPARSITIES = 0.25, 0.5
"""Sparsity of the fallback candidate, for budgets below `TIGHT` and for others. It is not
trained, so it cannot have memorised the select rows."""
DEEPER_STEP, DEEPEST = 0.05, 0.9
"""Further fallback candidates are pruned in such steps, up to this sparsity."""


@dataclass(frozen=True)
class ScheduleStep:
    """Passes that go on from the candidate before, and their training time."""

    passes: tuple[Pass, ...]
    minutes: float
    """Minutes of each training; infinite = all that are left."""
    least_minutes: float
    """The step is not started with fewer."""
    reserve_minutes: float = 0.0
    """Minutes that must be left after the step."""
    refit_minutes: float = REFIT_MINUTES
    """Minutes of the step besides training."""

    @property
    def trainings(self) -> int:
        """Number of passes that train."""
        return sum(x.training is not None for x in self.passes)

    @property
    def untrained(self) -> tuple[Pass, ...]:
        """The passes before the training at the end; none if one of them trains too."""
        *before, last = self.passes
        alone = last.training is not None and not any(x.training for x in before)
        return tuple(before) if alone else ()

    def timed(self, minutes: float) -> tuple[Pass, ...]:
        """The passes, each training for so many minutes."""
        return tuple(x.with_minutes(minutes) for x in self.passes)


@dataclass(frozen=True)
class ProgressiveSchedule:
    """Candidates that each go on from the one before."""

    start: Pipeline
    cuts: tuple[ScheduleStep, ...]
    """Pruning, each step further than the one before."""
    mixes: tuple[ScheduleStep, ...]
    """Multiplexing, on top of any cut; fewest rows a pass first."""
    final: ScheduleStep
    """The long training of the last accepted candidate."""
    fallbacks: tuple[Pipeline, ...]
    """Hardly changed candidates without training, the least changed first. The last certified
    one is the result if no trained candidate is certified."""
    deeper_fallbacks: tuple[Pipeline, ...] = ()
    """The last fallback, pruned further and further: what `quick` would try. A bisection finds
    the last one within the limit."""

    def candidates(self) -> tuple[Pipeline, ...]:
        """All fallbacks and every cut with its brief training, before mixes and `final`."""
        found, pipeline = [*self.fallbacks, *self.deeper_fallbacks], self.start
        for step in self.cuts:
            pipeline = pipeline.then(*step.timed(step.minutes))
            found.append(pipeline)
        return tuple(found)


def exact_pipeline() -> Pipeline:
    """The result when nothing may be lost: the same numbers, faster."""
    return _pipeline(_make("pool-early"))


def rungs(effort: Effort, points: float) -> tuple[tuple[float, float], ...]:
    """The rungs that a budget of `points` (a share, 0.02 = 2 points) starts with."""
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
        measured: prune to measured speed-ups; if False, to shares of multiply-adds.
        lowered: candidates run in a lower precision, so that precision alone is a fallback.
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
    """The candidates of an effort. Arguments as `progressive_schedule`."""
    if effort == "quick":
        return tuple(_pruned(x) for x in find_pass("prune").choices(model))
    return progressive_schedule(effort, points, limit_s, model).candidates()


def minutes_left(step: ScheduleStep, left: float, number: int) -> float:
    """Minutes that each training of a step gets; 0 = the step is not started.

    Args:
        step: what is to be trained.
        left: minutes until the time limit.
        number: trials before it; the first trial (0) gets its full time in any case.
    """
    if number == 0:
        return step.minutes
    spare = (left - step.reserve_minutes) / step.trainings - step.refit_minutes
    spare = round(spare, 2)
    return min(step.minutes, spare) if spare >= step.least_minutes else 0.0


def _cut_passes(effort: Effort, amount: dict[str, Any]) -> Sequence[Pass]:
    """Passes of a cut: `standard` prunes and refits, `thorough` learns the masks."""
    cut, train = _make("slice"), _make("distill")
    if effort == "standard":
        return _make("prune", **amount), cut, _make("reconstruct"), train
    return _make("learn-masks", **amount), cut, train


def _fallbacks(points: float, lowered: bool) -> tuple[Pipeline, ...]:
    """Under a tight budget a lower precision by itself comes first."""
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
