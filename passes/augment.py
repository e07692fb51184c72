"""Rows that are made up from others, for the dense model to teach on.

The dense model knows the training rows by heart, so what it says of them shows little of how
it judges new ones. What it says of rows that it has never seen shows more: a student that
learns from both comes nearer to it on other data.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.encode import Encoded
from prumux.optimizer.metrics import IGNORE

JOINED = 0.5
"""Share of made-up rows that are two rows one after the other."""
REPLACED = 0.12
"""Share of a made-up row's tokens that are replaced by tokens of other rows."""
Ints = NDArray[np.int64]
Labels = NDArray[Any] | tuple[Ints, ...]


@functools.lru_cache(maxsize=1)
def augmented(rows: Encoded, share: float, seed: int) -> Encoded:
    """The rows, and `share` times as many that are made up from them, without labels.

    The same object for the same arguments: a teacher remembers what it said of it.

    Args:
        rows: real rows; the first and the last token of each are taken for marks.
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
    longest = int(rows.lengths.max())
    first = random.permutation(np.resize(np.arange(len(rows)), count))
    second = random.integers(len(rows), size=count)
    ids, types = [], []
    for i, j in zip(first, second, strict=True):
        made, kinds = _joined(rows, int(i), int(j), longest, random)
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
    rows: Encoded, i: int, j: int, longest: int, random: np.random.Generator
) -> tuple[Ints, tuple[int, ...]]:
    """Row i, or rows i and j as one text if each is one, and the token types."""
    a, b = rows.ids[i], rows.ids[j]
    kinds = (0,) * len(a) if rows.types is None else rows.types[i]
    single = a.count(a[-1]) == b.count(b[-1]) == 1
    if single and len(a) + len(b) - 2 <= longest and random.random() < JOINED:
        made = (*a[:-1], *b[1:-1], a[-1])
        return np.array(made), (kinds[0],) * len(made)
    return np.array(a), kinds


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
