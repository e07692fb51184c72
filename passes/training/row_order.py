"""The order of training rows: shuffled batches, each of rows of similar length."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.data.tokenize import Batch, Encoded, collate
from prumux.optimizer.model.row_groups import batch_rows

POOL = 64
"""Number of batches whose rows are sorted by length together, before batches are shuffled."""
MULTIPLE = 8
"""Rows are padded to multiples of this length, in tokens, to keep the number of shapes low."""


def steps_of_epoch(rows: int, size: int, slots: int) -> int:
    """Number of batches of an epoch. Rows that do not fill a whole group are left out.

    Args:
        rows: number of rows.
        size: rows of a batch, rounded to whole groups.
        slots: rows of a group: the model mixes them into one.
    """
    return -(-(rows // slots * slots) // batch_rows(size, slots))


def _by_query(groups: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """A key that sorts rows by the longest row of their query and keeps queries together."""
    numbers = np.unique(groups, return_inverse=True)[1]
    longest = np.zeros(int(numbers.max(initial=-1)) + 1, dtype=np.int64)
    np.maximum.at(longest, numbers, lengths)
    return longest[numbers] * len(longest) + numbers


def _shuffled(rows: Encoded, random: np.random.Generator) -> NDArray[np.int64]:
    """Shuffle all rows. Rows of a query stay together; then the queries are shuffled."""
    order = random.permutation(len(rows))
    if rows.groups is None:
        return order
    numbers = np.unique(rows.groups, return_inverse=True)[1]
    places = random.permutation(int(numbers.max(initial=-1)) + 1)
    return order[np.argsort(places[numbers[order]], kind="stable")]


def stream(
    rows: Encoded, size: int, seed: int, start: int = 0, slots: int = 1
) -> Iterator[Batch]:
    """Endless batches of rows of similar length, from batch number `start` on.

    Every epoch is a new shuffle that depends on seed and epoch only. So a resumed run sees the
    same batches as an uninterrupted run. If `slots` rows are mixed into one, an epoch leaves
    out the rows that do not fill a group. The order of rows within a batch is then random, and
    decides the groups and the slots. Rows of a query are in the same batch if the batch has
    room for them.

    Raises:
        UsageError: there are too few rows for one group.
    """
    size, whole = batch_rows(size, slots), len(rows) // slots * slots
    if not whole:
        raise UsageError(
            f"{len(rows)} rows fill no mixed row of {slots}: give {slots} or more to train on"
        )
    each = steps_of_epoch(len(rows), size, slots)
    lengths = rows.lengths
    apart = lengths if rows.groups is None else _by_query(rows.groups, lengths)
    epoch, skip = divmod(start, each)
    while True:
        random = np.random.default_rng((seed, epoch))
        order = _shuffled(rows, random)[:whole]
        pools = [order[i : i + size * POOL] for i in range(0, len(order), size * POOL)]
        near = np.concatenate([pool[np.argsort(apart[pool], kind="stable")] for pool in pools])
        batches = [near[i : i + size] for i in range(0, len(near), size)]
        for i in random.permutation(each)[skip:]:
            longest = int(lengths[batches[i]].max())
            drawn = np.random.default_rng((seed, epoch, i)).permutation(batches[i])
            batch = drawn if slots > 1 else batches[i]
            yield collate(rows, batch, -(-longest // MULTIPLE) * MULTIPLE)
        epoch, skip = epoch + 1, 0
