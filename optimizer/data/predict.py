"""Running a model over rows and turning its logits into predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.row_groups import Run, batch_rows
from prumux.optimizer.tasks.metrics import Predictions
from prumux.optimizer.tasks.task import Task

from .tokenize import Batch, Encoded, batches

BATCH = 64
QUANTILES = (0.125, 0.375, 0.625, 0.875)
"""Where in the data's length distribution the workload's batches are taken."""


def torch_run(model: Model) -> Run:
    """The reference module as a function of numpy inputs."""
    module = EncoderModule(model).eval()
    return lambda inputs: run(module, inputs)


def predict(
    run: Run,
    rows: Encoded,
    task: Task,
    tick: Callable[[], None] | None = None,
    *,
    slots: int = 1,
    seed: int | None = None,
) -> Predictions:
    """Predictions in the order of the rows.

    Args:
        run: gives the logits.
        rows: what to predict; rows of like length are batched, and mixed, together.
        task: tells what the logits mean.
        tick: called after each batch.
        slots: rows that the model mixes into one.
        seed: draws who is mixed with whom.
    """
    found: list[Any] = [None] * len(rows)
    for batch in batches(rows, batch_rows(BATCH, slots), seed=seed):
        logits = run(batch.inputs())
        for i, row in enumerate(batch.rows):
            each = logits[i]
            found[row] = each if each.ndim == 1 else each[: len(rows.ids[row])]
        if tick is not None:
            tick()
    scored = rows.labels if isinstance(rows.labels, tuple) else rows.scored
    return task.predictions(found, scored)


def mixed_together(rows: Encoded, slots: int, seed: int) -> NDArray[np.int64] | None:
    """Which rows `predict` mixes together: numbers of groups, [N]; None if none are."""
    if slots == 1:
        return None
    groups, start = np.empty(len(rows), np.int64), 0
    for batch in batches(rows, batch_rows(BATCH, slots), seed=seed):
        groups[batch.rows] = start + np.arange(len(batch.rows)) // slots
        start = int(groups[batch.rows[-1]]) + 1
    return groups


def workload(rows: Encoded, batch: int, length: int | None) -> tuple[Batch, ...]:
    """The serving point: a few batches that stand for all.

    Without `length` they are taken at quantiles of the rows' own lengths and padded to the
    longest row in each; with it every row is filled up, or cut, to exactly that many tokens.
    """
    if length is not None:
        filled = Encoded(
            ids=tuple(_fill(rows.ids[i % len(rows)], length) for i in range(batch)),
            types=None
            if rows.types is None
            else tuple(_fill(rows.types[i % len(rows)], length) for i in range(batch)),
            labels=None,
            pad_id=rows.pad_id,
        )
        return tuple(batches(filled, batch))
    order = np.argsort(rows.lengths, kind="stable")
    groups = []
    for quantile in QUANTILES:
        middle = int(quantile * len(order))
        start = max(0, min(middle - batch // 2, len(order) - batch))
        groups.append(order[start : start + batch])
    return tuple(b for group in groups for b in batches(rows.take(group), batch))


def _fill(ids: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Repeat the inner tokens until the row is full; its last token stays last."""
    inner = list(ids[1:-1]) or list(ids)
    repeats = -(-length // len(inner))
    return (ids[0], *(inner * repeats)[: length - 2], ids[-1])[:length]
