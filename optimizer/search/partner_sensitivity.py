"""Partner sensitivity: how much a row's answer depends on the rows that share its pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import like_length
from prumux.optimizer.tasks.metrics import Predictions

DRAWS = 5


@dataclass(frozen=True)
class PartnerSensitivity:
    """Scores of one model on the same rows. Each draw assigns random partners and slots."""

    scores: tuple[float, ...]
    """The score of each draw."""
    mean: float
    slots: tuple[float | None, ...]
    """The score of each slot's rows, as the mean over draws; None = too few rows."""
    depends_on_partners: float
    """The change of answers between draws, see `Task.instability`."""


def partner_sensitivity(
    model: Model,
    rows: Encoded,
    labels: Predictions,
    metric: str,
    tick: Callable[[], None] | None = None,
    *,
    draws: int = DRAWS,
    by_length: bool = True,
) -> PartnerSensitivity:
    """Score a multiplexed model under several draws of partners.

    Args:
        model: a multiplexed model.
        rows: the rows to predict.
        labels: the reference of the score, in the order of the rows.
        metric: see `Task.score`.
        tick: called after each draw.
        draws: number of draws; the seeds are 0, 1, ...
        by_length: True = partners have similar lengths; False = partners are any rows.
    """
    n, run = model.encoder.slots, torch_run(model)
    found: list[Predictions] = []
    scores, per_slot = [], [[] for _ in range(n)]  # type: tuple[list[float], list[list[float]]]
    for seed in range(draws):
        if by_length:
            order = like_length(rows.lengths, seed)
            made = predict(run, rows, model.task, slots=n, seed=seed)
        else:
            order = np.random.default_rng(seed).permutation(len(rows))
            drawn = predict(run, rows.take(order), model.task, slots=n, by_length=False)
            made = _take(drawn, np.argsort(order))
        found.append(made)
        scores.append(model.task.score(metric, made, labels))
        for slot, kept in enumerate(per_slot):
            members = order[slot::n]
            if len(members) > 1:
                kept.append(
                    model.task.score(metric, _take(made, members), _take(labels, members))
                )
        if tick is not None:
            tick()
    return PartnerSensitivity(
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
