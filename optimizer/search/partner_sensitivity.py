"""How much the answers of a model that mixes rows depend on who is mixed with whom."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.row_groups import like_length
from prumux.optimizer.tasks.metrics import Predictions

DRAWS = 5


@dataclass(frozen=True)
class Drawn:
    """Scores of one model on the same rows, with partners and slots drawn anew each time."""

    scores: tuple[float, ...]
    """One a draw."""
    mean: float
    slots: tuple[float | None, ...]
    """Per slot, the mean over draws of the score of the rows that were in it; None if those
    were too few."""
    depends_on_partners: float
    """How much answers change between draws: see `Task.instability`."""


def drawn(
    model: Model,
    rows: Encoded,
    labels: Predictions,
    metric: str,
    tick: Callable[[], None] | None = None,
    *,
    draws: int = DRAWS,
) -> Drawn:
    """Score a multiplexed model under several draws of partners.

    Args:
        model: mixes rows.
        rows: what is predicted.
        labels: what predictions are scored against, in the order of the rows.
        metric: as in `score`.
        tick: called after each draw.
        draws: how many; their seeds are 0, 1, ...
    """
    n, run = model.encoder.slots, torch_run(model)
    found: list[Predictions] = []
    scores, per_slot = [], [[] for _ in range(n)]  # type: tuple[list[float], list[list[float]]]
    for seed in range(draws):
        made = predict(run, rows, model.task, slots=n, seed=seed)
        found.append(made)
        scores.append(model.task.score(metric, made, labels))
        order = like_length(rows.lengths, seed)
        for slot, kept in enumerate(per_slot):
            members = order[slot::n]
            if len(members) > 1:
                kept.append(
                    model.task.score(metric, _take(made, members), _take(labels, members))
                )
        if tick is not None:
            tick()
    return Drawn(
        tuple(scores),
        fmean(scores),
        tuple(fmean(kept) if kept else None for kept in per_slot),
        model.task.instability(found),
    )


def _take(values: Predictions, index: np.ndarray) -> Predictions:
    if isinstance(values, tuple):
        return tuple(values[i] for i in index)
    found: Predictions = values[index]
    return found
