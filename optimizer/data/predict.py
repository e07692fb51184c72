"""Run a model on rows, and make the batches of the workload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.cascade import module_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import run
from prumux.optimizer.model.row_groups import Run, batch_rows
from prumux.optimizer.tasks.metrics import Predictions
from prumux.optimizer.tasks.task import Task

from .ragged import Ragged
from .tokenize import Batch, Encoded, batches, collate

Arrivals = Literal["sorted", "mixed"]
"""Order in which rows reach an engine: `sorted` by length, or `mixed`, the order of
arrival."""
ARRIVALS: tuple[Arrivals, ...] = get_args(Arrivals)
BATCH = 64
QUANTILES = (0.125, 0.375, 0.625, 0.875)
"""Quantiles of row length around which the batches of the workload are taken."""


def torch_run(model: Model) -> Run:
    """The torch module of a model as a function of numpy inputs."""
    module = module_of(model).eval()
    return lambda inputs: run(module, inputs)


def predict(
    run: Run,
    rows: Encoded,
    task: Task,
    tick: Callable[[], None] | None = None,
    *,
    slots: int = 1,
    seed: int | None = None,
    by_length: bool = True,
) -> Predictions:
    """Predictions of a model, in the order of the rows.

    Args:
        run: computes the logits of a batch.
        rows: the rows.
        task: turns logits into predictions.
        tick: called after each batch.
        slots: number of rows that share a forward pass.
        seed: shuffles rows of equal length, which changes the groups of mixed rows.
        by_length: True = batch and mix rows of similar length; False = neighbouring rows.
    """
    found = row_logits(run, rows, tick, slots=slots, seed=seed, by_length=by_length)
    return predictions_of(found, rows, task)


def predictions_of(logits: Sequence[NDArray[Any]], rows: Encoded, task: Task) -> Predictions:
    """Predictions from the logits of each row, as `row_logits` returns them."""
    predictions = task.predictions(logits, scored_positions(rows))
    if rows.layout is not None:
        return task.arranged(predictions, rows.layout)
    return predictions if rows.groups is None else task.with_groups(predictions, rows.groups)


def row_logits(
    run: Run,
    rows: Encoded,
    tick: Callable[[], None] | None = None,
    *,
    slots: int = 1,
    seed: int | None = None,
    by_length: bool = True,
) -> list[NDArray[Any]]:
    """Logits of each row, [C] or [T, C]. Order and arguments are the same as in `predict`."""
    found: list[Any] = [None] * len(rows)
    for batch in batches(rows, batch_rows(BATCH, slots), by_length, seed=seed):
        logits = run(batch.inputs())
        for i, row in enumerate(batch.rows):
            each = logits[i]
            found[row] = each if each.ndim == 1 else each[: rows.lengths[row]]
        if tick is not None:
            tick()
    return found


def scored_positions(rows: Encoded) -> tuple[NDArray[Any], ...] | None:
    """The scored positions of each row, for tasks that label words; None for other tasks."""
    labels = rows.texts().labels
    return labels if isinstance(labels, tuple) else rows.scored


def mixed_together(
    rows: Encoded, slots: int, seed: int, *, by_length: bool = True
) -> NDArray[np.int64] | None:
    """The number of each row's group of mixed rows in `predict`, [N]; None without mixing."""
    if slots == 1:
        return None
    groups, start = np.empty(len(rows), np.int64), 0
    for batch in batches(rows, batch_rows(BATCH, slots), by_length, seed=seed):
        groups[batch.rows] = start + np.arange(len(batch.rows)) // slots
        start = int(groups[batch.rows[-1]]) + 1
    return groups


def workload(
    rows: Encoded, batch: int, length: int | None, arrivals: Arrivals = "sorted"
) -> tuple[Batch, ...]:
    """Make the batches at which a model is timed.

    Args:
        rows: the rows that the batches are taken from.
        batch: rows of a batch.
        length: number of tokens of every row; rows are cut, or filled with repeated tokens.
            None = rows keep their lengths, and a batch is taken around each of `QUANTILES`.
        arrivals: "mixed" = if `length` is None, each batch consists of neighbouring rows, and
            the batches are spread evenly over all rows.
    """
    if length is not None:
        filled = Encoded(
            ids=_filled(rows.ids, batch, length),
            types=None if rows.types is None else _filled(rows.types, batch, length),
            labels=None,
            pad_id=rows.pad_id,
        )
        return tuple(batches(filled, batch))
    if arrivals == "mixed":
        starts = np.linspace(0, max(0, len(rows) - batch), len(QUANTILES)).astype(np.int64)
        runs = (np.arange(at, min(at + batch, len(rows))) for at in starts)
        return tuple(collate(rows, run) for run in runs)
    order = np.argsort(rows.lengths, kind="stable")
    groups = []
    for quantile in QUANTILES:
        middle = int(quantile * len(order))
        start = max(0, min(middle - batch // 2, len(order) - batch))
        groups.append(order[start : start + batch])
    return tuple(b for group in groups for b in batches(rows.take(group), batch))


def _filled(rows: Ragged, count: int, length: int) -> Ragged:
    """`count` rows of exactly `length` tokens, with inner tokens repeated or cut off."""
    given = [rows[i % len(rows)].tolist() for i in range(count)]
    return Ragged.of(_fill(x, length) for x in given)


def _fill(ids: list[int], length: int) -> list[int]:
    inner = ids[1:-1] or ids
    repeats = -(-length // len(inner))
    return [ids[0], *(inner * repeats)[: length - 2], ids[-1]][:length]
