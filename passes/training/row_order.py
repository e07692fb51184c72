"""The order in which rows are trained on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.data.tokenize import Batch, Encoded, collate
from prumux.optimizer.model.row_groups import batch_rows

POOL = 64
"""So many batches are sorted by length together, then shuffled."""
MULTIPLE = 8
"""Rows are padded to multiples of this, so that few shapes occur."""


def steps_of_epoch(rows: int, size: int, slots: int) -> int:
    """Batches in which every row is seen once, but those that fill no group."""
    return -(-(rows // slots * slots) // batch_rows(size, slots))


def stream(
    rows: Encoded, size: int, seed: int, start: int = 0, slots: int = 1
) -> Iterator[Batch]:
    """Batches without end, rows of like length together, from batch number `start` on.

    Every epoch is a new shuffle that depends on seed and epoch only, so that a resumed run
    sees what an uninterrupted one would have. Where `slots` rows are mixed into one, all
    groups are whole: an epoch leaves out the rows that would fill none, and who is mixed with
    whom, and where, is drawn from the batch.

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
    epoch, skip = divmod(start, each)
    while True:
        random = np.random.default_rng((seed, epoch))
        order = random.permutation(len(rows))[:whole]
        pools = [order[i : i + size * POOL] for i in range(0, len(order), size * POOL)]
        near = np.concatenate(
            [pool[np.argsort(lengths[pool], kind="stable")] for pool in pools]
        )
        batches = [near[i : i + size] for i in range(0, len(near), size)]
        for i in random.permutation(each)[skip:]:
            longest = int(lengths[batches[i]].max())
            drawn = np.random.default_rng((seed, epoch, i)).permutation(batches[i])
            batch = drawn if slots > 1 else batches[i]
            yield collate(rows, batch, -(-longest // MULTIPLE) * MULTIPLE)
        epoch, skip = epoch + 1, 0
