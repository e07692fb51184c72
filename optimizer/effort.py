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
SPEEDUPS = (2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
SPARSITIES = (0.55, 0.72, 0.8, 0.85, 0.88, 0.92, 0.94)
"""Of multiply-adds; used for the speed-ups where time cannot be measured well enough."""
LIMIT_S: dict[Effort, float] = {"standard": 1800, "thorough": 7200}
"""Time limits where none is given."""
CHUNKS = 12
"""Training is given out in pieces, so many to the time limit."""
STEPS: dict[Effort, str] = {
    "standard": "prune{{{to}}},slice,reconstruct,distill{{minutes={minutes:g}}}",
    "thorough": (
        "learn-masks{{{to} minutes={minutes:g}}},slice,distill{{minutes={minutes:g}}}"
    ),
}


@dataclass(frozen=True)
class Family:
    """Candidates that go on from each other."""

    start: str
    steps: tuple[str, ...]
    """What each member adds to the one before it."""
    more: str
    """What a member adds to itself while it loses too much."""

    def members(self) -> tuple[Pipeline, ...]:
        """Every member, with no more training than its step."""
        texts = [",".join((self.start, *self.steps[: i + 1])) for i in range(len(self.steps))]
        return tuple(Pipeline.parse(text) for text in texts)


def family(effort: Effort, limit_s: float | None, measured: bool = True) -> Family:
    """The family of an effort that trains.

    Args:
        effort: `standard` or `thorough`.
        limit_s: the time limit, in seconds.
        measured: prune to measured speed-ups; if not, to shares of multiply-adds.
    """
    minutes = max(0.01, round((limit_s or LIMIT_S[effort]) / 60 / CHUNKS, 2))
    to = [f"speedup={x:g}" for x in SPEEDUPS]
    if not measured:
        to = [f"sparsity={x:g} of=macs" for x in SPARSITIES]
    steps = tuple(STEPS[effort].format(to=x, minutes=minutes) for x in to)
    return Family("pool-early", steps, f"distill{{minutes={minutes:g}}}")


def default_space(effort: Effort, limit_s: float | None) -> tuple[Pipeline, ...]:
    """The candidates of an effort."""
    return Pipeline.space(QUICK) if effort == "quick" else family(effort, limit_s).members()
