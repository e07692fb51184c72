"""Rows that are made up from others, for the dense model to teach on.

The dense model knows the training rows by heart, so what it says of them shows little of how
it judges new ones. What it says of rows that it has never seen shows more: a student that
learns from both comes nearer to it on other data. Where a row is one text they are as long as
what is served, which training texts need not be (SST-2 trains on phrases).
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.tasks.labels import IGNORE

REPLACED = 0.12
"""Share of a made-up row's tokens that are replaced by tokens of other rows."""
Ints = NDArray[np.int64]
Labels = NDArray[Any] | tuple[Ints, ...]


@functools.lru_cache(maxsize=1)
def augmented(rows: Encoded, like: Encoded, share: float, seed: int) -> Encoded:
    """The rows, and `share` times as many that are made up from them, without labels.

    The same object for the same arguments: a teacher remembers what it said of it.

    Args:
        rows: real rows; the first and the last token of each are taken for marks.
        like: rows as long as those that are served.
        share: 0 = none, 1 = as many as there are rows.
        seed: draws all of it.
    """
    count = round(share * len(rows))
    if not count:
        return rows
    random = np.random.default_rng(seed)
    tokens = np.concatenate([np.array(x, dtype=np.int64) for x in rows.ids])
    marks = np.array(sorted({x[0] for x in rows.ids} | {x[-1] for x in rows.ids}))
    words = tokens[~np.isin(tokens, marks)]
    first = random.permutation(np.resize(np.arange(len(rows)), count))
    lengths = random.choice(like.lengths, count)
    ids, types = [], []
    for i, length in zip(first.tolist(), lengths.tolist(), strict=True):
        made, kinds = _joined(rows, i, length, random)
        swap = (random.random(len(made)) < REPLACED) & ~np.isin(made, marks)
        if len(words):
            made = np.where(swap, random.choice(words, len(made)), made)
        ids.append(tuple(made.tolist()))
        types.append(kinds)
    return Encoded(
        ids=rows.ids + tuple(ids),
        types=None if rows.types is None else rows.types + tuple(types),
        labels=_labels(rows, [len(x) for x in ids]),
        pad_id=rows.pad_id,
    )


def _joined(
    rows: Encoded, i: int, length: int, random: np.random.Generator
) -> tuple[Ints, tuple[int, ...]]:
    """Row i, with others after it up to a length if each is one text; and the token types."""
    given = rows.ids[i]
    kinds = (0,) * len(given) if rows.types is None else rows.types[i]
    *made, end = given
    if end in made or length <= len(given):
        return np.array(given), kinds
    while len(made) + 1 < length:
        other = rows.ids[int(random.integers(len(rows)))]
        made += other[1:-1] or (end,)  # a row of nothing must not keep this going
    return np.array([*made[: length - 1], end]), (kinds[0],) * length


def _labels(
    rows: Encoded, lengths: list[int]
) -> NDArray[np.generic] | tuple[Ints, ...] | None:
    """The rows' labels, and none for those that are made up."""
    if rows.labels is None:
        return None
    if isinstance(rows.labels, tuple):
        return rows.labels + tuple(np.full(n, IGNORE) for n in lengths)
    none = np.nan if rows.labels.dtype.kind == "f" else IGNORE
    return np.concatenate([rows.labels, np.full(len(lengths), none)])
