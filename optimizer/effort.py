"""What is searched when no passes are named, and how the time is spent.

`quick` tries each candidate on its own, without training. The others train, and training is
dear, so their candidates are one family: each goes on where the one before it ended, pruned
further and trained again. A run that stops anywhere has all the smaller cuts finished.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from .pipeline import Pipeline

Effort = Literal["quick", "standard", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
QUICK = (
    "pool-early,prune{sparsity="
    + "|".join(f"{step / 40:g}" for step in range(4, 37))
    + " of=macs},slice,reconstruct"
)
LIMIT_S: dict[Effort, float] = {"standard": 1800, "thorough": 7200}
"""Time limits where none is given."""
STEPS: dict[Effort, str] = {
    "standard": "prune{{{to}}},slice,reconstruct,distill{{minutes=MINUTES}}",
    "thorough": ("learn-masks{{{to} minutes=MINUTES}},slice,distill{{minutes=MINUTES}}"),
}
SHARES: dict[Effort, tuple[float, ...]] = {
    "standard": (0.03, 0.1, 0.65),
    "thorough": (0.04, 0.08, 0.16),
}
"""Of the time limit, for one training of the first members; others get as much as the last,
or what is left.

The first are steps on the way: what a model has learnt is not lost to the next, smaller one,
the loss falls with the logarithm of time, and only the last counts.
"""
LADDERS: dict[Effort, tuple[tuple[float, float], ...]] = {
    "standard": ((2, 0.55), (3, 0.72), (4.2, 0.81), (5, 0.85), (7, 0.9), (10, 0.94)),
    "thorough": ((3, 0.72), (5, 0.85), (8, 0.92), (10, 0.94), (12, 0.95)),
}
"""Speed-ups, and the sparsity in multiply-adds where time cannot be measured well enough."""
REFIT_MINUTES = 1.0
"""Kept free of a training's time for pruning and refitting before it, scoring after it."""
LEAST_SHARE = 0.3
"""A training that could not have this share of its time is not begun."""
SAFE = "pool-early,prune{sparsity=0.5 of=macs},slice,reconstruct"
"""Without training, hence where nobody can have learnt the select rows by heart."""


@dataclass(frozen=True)
class Step:
    """What a member adds to the one before it."""

    text: str
    """With MINUTES where the training time goes."""
    minutes: float

    def timed(self, minutes: float) -> str:
        """The passes, trained for so long."""
        return self.text.replace("MINUTES", f"{minutes:g}")


@dataclass(frozen=True)
class Family:
    """Candidates that go on from each other."""

    start: str
    steps: tuple[Step, ...]
    safe: Pipeline
    """A small cut without training, shipped where none of the members is certified."""

    def members(self) -> tuple[Pipeline, ...]:
        """Every candidate, trained as long as planned."""
        texts = [step.timed(step.minutes) for step in self.steps]
        made = (",".join((self.start, *texts[: i + 1])) for i in range(len(texts)))
        return (self.safe, *(Pipeline.parse(text) for text in made))


def family(effort: Effort, limit_s: float | None, measured: bool = True) -> Family:
    """The family of an effort that trains.

    Args:
        effort: `standard` or `thorough`.
        limit_s: the time limit, in seconds.
        measured: prune to measured speed-ups; if not, to shares of multiply-adds.
    """
    total, shares = (limit_s or LIMIT_S[effort]) / 60, SHARES[effort]
    steps = []
    for i, (speedup, sparsity) in enumerate(LADDERS[effort]):
        to = f"speedup={speedup:g}" if measured else f"sparsity={sparsity:g} of=macs"
        minutes = max(0.01, round(total * shares[min(i, len(shares) - 1)], 2))
        steps.append(Step(STEPS[effort].format(to=to), minutes))
    return Family("pool-early", tuple(steps), Pipeline.parse(SAFE))


def default_space(effort: Effort, limit_s: float | None) -> tuple[Pipeline, ...]:
    """The candidates of an effort."""
    return Pipeline.space(QUICK) if effort == "quick" else family(effort, limit_s).members()


def minutes_left(step: Step, left: float, number: int) -> float:
    """What a step may train, of the minutes that are left; all of it if it is the first."""
    per_minute = step.text.count("MINUTES")
    left = round(left / per_minute - REFIT_MINUTES, 2)
    if number == 0 or left >= step.minutes:
        return step.minutes
    return left if left >= LEAST_SHARE * step.minutes else 0.0
