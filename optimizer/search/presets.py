"""What is searched when no passes are named, and how the time is spent.

`quick` tries each candidate on its own, without training. The others train, and training is
dear, so their candidates are one family: each goes on where the one before it ended, pruned
further and trained again. A run that stops anywhere has all the smaller cuts finished.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import find_pass

Effort = Literal["quick", "standard", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
CUT = "pool-early,{},slice,reconstruct"
"""Without training."""
LIMIT_S: dict[Effort, float] = {"standard": 1800, "thorough": 7200}
"""Time limits where none is given."""
STEPS: dict[Effort, str] = {
    "standard": "prune{{{to}}},slice,reconstruct,distill{{minutes=MINUTES}}",
    "thorough": ("learn-masks{{{to} minutes=MINUTES}},slice,distill{{minutes=MINUTES}}"),
}
TRAINED = "distill{minutes=MINUTES}"
BRIEF: dict[Effort, float] = {"standard": 0.03, "thorough": 0.02}
"""Of the time limit, for each training of a cut that is tried; one gets what is left."""
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
"""Speed-ups, and the sparsity in multiply-adds where time cannot be measured well enough."""
TIGHT = 0.015
"""Budgets below this begin with the first of these; for others the second is safe enough."""
LONG_SHARE = 0.45
"""Of the time limit, kept for the long training at least."""
REFIT_MINUTES = 1.0
"""At most so much is kept free for pruning and refitting before a training, scoring after."""
LEAST_SHARE = 0.3
"""A training that could not have this share of its time is not begun."""
SAFE_SPARSITIES = 0.25, 0.5
"""Of what is cut without training, hence where nobody can have learnt the select rows by
heart; for budgets below `TIGHT`, and for others."""
EXACT = "pool-early"
"""What is shipped when nothing may be lost: the same numbers, faster."""


@dataclass(frozen=True)
class Step:
    """What a member adds to the one before it."""

    text: str
    """With MINUTES where the training time goes."""
    minutes: float
    """How long to train; infinite = for all the time that is left."""
    least: float
    """A training that could not have so many minutes is not begun."""
    keep: float = 0.0
    """Minutes that must be left after it."""
    refit: float = REFIT_MINUTES
    """Minutes that it takes beside training."""

    @property
    def trainings(self) -> int:
        """How many times it trains for so long."""
        return self.text.count("MINUTES")

    def timed(self, minutes: float) -> str:
        """The passes, trained for so long."""
        return self.text.replace("MINUTES", f"{minutes:g}")


@dataclass(frozen=True)
class Family:
    """Candidates that go on from each other."""

    start: str
    steps: tuple[Step, ...]
    mixes: tuple[Step, ...]
    """What may go on from any of them as well, the gentlest first."""
    rest: Step
    """What the last of them is trained with, for long."""
    safe: tuple[Pipeline, ...]
    """Hardly changed and without training, the least changed first; the last of them that is
    certified is shipped where none of the members is."""

    def members(self) -> tuple[Pipeline, ...]:
        """Every cut, trained as on the way; mixing and the long training come on top."""
        texts = [step.timed(step.minutes) for step in self.steps]
        made = (",".join((self.start, *texts[: i + 1])) for i in range(len(texts)))
        return (*self.safe, *(Pipeline.parse(text) for text in made))


def rungs(effort: Effort, points: float) -> tuple[tuple[float, float], ...]:
    """The part of the ladder that a budget of so many points begins with."""
    return LADDERS[effort][int(points >= TIGHT) :]


def family(  # noqa: PLR0917 - what a search knows
    effort: Effort,
    points: float,
    limit_s: float | None,
    model: Model,
    measured: bool = True,
    lowered: bool = False,
) -> Family:
    """The family of an effort that trains.

    Args:
        effort: `standard` or `thorough`.
        points: how much may be lost, about.
        limit_s: the time limit, in seconds.
        model: what is to be made faster.
        measured: prune to measured speed-ups; if not, to shares of multiply-adds.
        lowered: candidates run in a lower precision, which by itself is safe and of use.
    """
    total = (limit_s or LIMIT_S[effort]) / 60
    brief = max(0.01, round(total * BRIEF[effort], 2))
    refit = min(REFIT_MINUTES, brief)

    def step(text: str) -> Step:
        return Step(text, brief, LEAST_SHARE * brief, LONG_SHARE * total, refit)

    def cut(speedup: float, sparsity: float) -> Step:
        to = f"speedup={speedup:g}" if measured else f"sparsity={sparsity:g} of=macs"
        return step(STEPS[effort].format(to=to))

    return Family(
        start=EXACT,
        steps=tuple(cut(*rung) for rung in rungs(effort, points)),
        mixes=tuple(step(f"{x},{TRAINED}") for x in find_pass("mux").choices(model)),
        rest=Step(TRAINED, math.inf, brief, refit=refit),
        safe=_safe(points, lowered),
    )


def _safe(points: float, lowered: bool) -> tuple[Pipeline, ...]:
    """What is hardly changed; under a tight budget a lower precision by itself comes first."""
    cut = _cut(f"prune{{sparsity={SAFE_SPARSITIES[points >= TIGHT]} of=macs}}")
    return (Pipeline.parse(EXACT), cut) if lowered and points < TIGHT else (cut,)


def default_space(
    effort: Effort, points: float, limit_s: float | None, model: Model
) -> tuple[Pipeline, ...]:
    """The candidates of an effort; see `family`."""
    if effort == "quick":
        return tuple(_cut(x) for x in find_pass("prune").choices(model))
    return family(effort, points, limit_s, model).members()


def _cut(pruning: object) -> Pipeline:
    return Pipeline.parse(CUT.format(pruning))


def minutes_left(step: Step, left: float, number: int) -> float:
    """What a step may train, of the minutes that are left; all of it if it is the first."""
    if number == 0:
        return step.minutes
    spare = round((left - step.keep) / step.trainings - step.refit, 2)
    return min(step.minutes, spare) if spare >= step.least else 0.0
