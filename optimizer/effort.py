"""What is searched when no passes are named, and how the time is spent.

`quick` tries each candidate on its own, without training. The others train, and training is
dear, so their candidates are one family: each goes on where the one before it ended, pruned
further and trained again. A run that stops anywhere has all the smaller cuts finished.
"""

from __future__ import annotations

from typing import Literal, get_args

from .pipeline import Pipeline

Effort = Literal["quick", "standard", "thorough"]
EFFORTS: tuple[Effort, ...] = get_args(Effort)
QUICK = (
    "pool-early,prune{sparsity="
    + "|".join(f"{step / 40:g}" for step in range(4, 37))
    + " of=macs},slice,reconstruct"
)
FAMILY = ((2.0, 2.0), (3.0, 3.0), (4.0, 5.0), (5.0, 5.0), (6.0, 5.0), (8.0, 5.0))
"""Speed-up of each member, and its part of the training time."""
SPARSITIES = (0.6, 0.75, 0.83, 0.87, 0.9, 0.93)
"""Used in place of the speed-ups where time cannot be measured well enough."""
LIMIT_S: dict[Effort, float] = {"standard": 1800, "thorough": 7200}
"""Time limits where none is given."""
TRAINING = 0.75
"""Part of the time limit that is spent training; the rest scores, certifies and exports."""
STEPS: dict[Effort, str] = {
    "standard": "prune{{{to}}},slice,reconstruct,distill{{minutes={minutes:g}}}",
    "thorough": (
        "learn-masks{{{to} minutes={half:g}}},slice,reconstruct,distill{{minutes={half:g}}}"
    ),
}


def default_space(
    effort: Effort, limit_s: float | None, measured: bool = True
) -> tuple[Pipeline, ...]:
    """The candidates of an effort.

    Args:
        effort: how much may be spent.
        limit_s: the time limit, in seconds.
        measured: prune to measured speed-ups; if not, to shares of multiply-adds.
    """
    if effort == "quick":
        return Pipeline.space(QUICK)
    minutes = TRAINING * (limit_s or LIMIT_S[effort]) / 60 / sum(part for _, part in FAMILY)
    text, found = "pool-early", []
    for (speedup, part), sparsity in zip(FAMILY, SPARSITIES, strict=True):
        to = f"speedup={speedup:g}" if measured else f"sparsity={sparsity:g} of=macs"
        each = round(part * minutes, 2)
        text += "," + STEPS[effort].format(to=to, minutes=each, half=round(each / 2, 2))
        found.append(Pipeline.parse(text))
    return tuple(found)
