"""Which word each token belongs to, and the labels of words at their first tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.tasks.labels import IGNORE, Ints


def words_of(found: Any, side: Literal["left", "right"]) -> list[int | None]:
    """The word of each token; None for special tokens and for a word whose head is cut off."""
    words: list[int | None] = found.word_ids
    if side == "right":
        return words
    cut = {x for part in found.overflowing for x in part.word_ids}
    return [None if x in cut else x for x in words]


def first_subwords(words: Sequence[int | None]) -> NDArray[np.bool_]:
    """True on each word's first token, [T]."""
    pairs = zip([None, *words], words, strict=False)
    return np.array([x is not None and x != before for before, x in pairs], dtype=np.bool_)


def aligned(labels: Ints, words: Sequence[int | None], first: NDArray[np.bool_]) -> Ints:
    """A row's labels on its tokens, -100 on all but first tokens of words, [T]."""
    found = np.full(len(words), IGNORE, dtype=np.int64)
    for i, word in enumerate(words):
        if first[i] and word is not None:
            found[i] = labels[word]
    return found
