"""Make synthetic training rows from real rows. They have no labels, only teacher's logits.

The given model has memorised the training rows. So its outputs on these rows say little about
its outputs on new rows. A student that also learns from unseen rows agrees better with the
given model on held-out data (TinyBERT augments for the same reason,
https://arxiv.org/abs/1909.10351). If a row is one text, synthetic rows have the lengths of
served rows. Training texts may have other lengths: SST-2 trains on phrases.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.tasks.labels import IGNORE

REPLACED = 0.12
"""Share of a synthetic row's tokens that are replaced by tokens of other rows."""
Ints = NDArray[np.int64]
Labels = NDArray[Any] | tuple[Ints, ...]


@functools.lru_cache(maxsize=1)
def augmented(rows: Encoded, like: Encoded, share: float, seed: int) -> Encoded:
    """Append synthetic rows without labels to the rows, `share` for each row.

    The result is cached, because the teacher keeps its outputs for this object only.

    Args:
        rows: real rows; the first and the last token of each count as special tokens.
        like: rows with the lengths of served rows.
        share: synthetic rows per real row; 0 = none.
        seed: seed of all random draws.
    """
    count = round(share * len(rows))
    if not count:
        return rows
    random = np.random.default_rng(seed)
    tokens, ends = rows.ids.values, (rows.ids.starts, rows.ids.ends - 1)
    special = np.unique(np.concatenate([tokens[x] for x in ends]))
    words = tokens[~np.isin(tokens, special)]
    first = random.permutation(np.resize(np.arange(len(rows)), count))
    lengths = random.choice(like.lengths, count)
    ids, types = list[list[int]](), list[list[int]]()
    for i, length in zip(first.tolist(), lengths.tolist(), strict=True):
        made, kinds = _joined(rows, i, length, random)
        swap = (random.random(len(made)) < REPLACED) & ~np.isin(made, special)
        if len(words):
            made = np.where(swap, random.choice(words, len(made)), made)
        ids.append(made.tolist())
        types.append(kinds)
    return Encoded(
        ids=Ragged.joined([rows.ids, Ragged.of(ids)]),
        types=None if rows.types is None else Ragged.joined([rows.types, Ragged.of(types)]),
        labels=_labels(rows, [len(x) for x in ids]),
        groups=None if rows.groups is None else np.r_[rows.groups, -1 - np.arange(count)],
        pad_id=rows.pad_id,
    )


def _joined(
    rows: Encoded, i: int, length: int, random: np.random.Generator
) -> tuple[Ints, list[int]]:
    """Tokens and types of row i. Other rows extend a single text to `length` tokens."""
    given = rows.ids[i].tolist()
    kinds = [0] * len(given) if rows.types is None else rows.types[i].tolist()
    *made, end = given
    if end in made or length <= len(given):
        return np.array(given), kinds
    while len(made) + 1 < length:
        other = rows.ids[int(random.integers(len(rows)))].tolist()
        made += other[1:-1] or [end]  # an empty row must not loop for ever
    return np.array([*made[: length - 1], end]), [kinds[0]] * length


def _labels(
    rows: Encoded, lengths: list[int]
) -> NDArray[np.generic] | tuple[Ints, ...] | None:
    """Append the value for "no label" to the labels, for every synthetic row."""
    if rows.labels is None:
        return None
    if isinstance(rows.labels, tuple):
        return rows.labels + tuple(np.full(n, IGNORE) for n in lengths)
    none = np.nan if rows.labels.dtype.kind == "f" else IGNORE
    made = np.full((len(lengths), *rows.labels.shape[1:]), none)
    return np.concatenate([rows.labels, made])
