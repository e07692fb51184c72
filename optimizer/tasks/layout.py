"""Rows that are scored but consist of several texts, which a model runs one by one.

A question is run with each window of its context. The label of a token is -100 where it cannot
be in an answer, else 0, plus 1 where the right answer starts, and 2 where it ends. Position 0
stands for "no answer", and has both where the window does not hold the whole right answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .labels import IGNORE

TextKind = Literal["text", "query", "document"]
"""The kind of a text, where a model has a prompt for each kind."""

LONGEST_ANSWER = 30
"""Tokens of the longest answer, as in SQuAD's baselines."""
START, END = 1, 2
"""Added to the label of a token where the right answer starts and ends."""
LOWEST = -1e9
"""The logit of a position that does not count."""


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows in which contexts are read. N questions, W windows, T tokens of one."""

    contexts: tuple[str, ...]
    """The context of each question, [N]."""
    question: NDArray[np.int64]
    """The question of each window, [W], in order."""
    tokens: tuple[NDArray[np.int64], ...]
    """Per window the label of each token, [T]."""
    spans: tuple[NDArray[np.int32], ...]
    """Per window the characters of the context that each token stands for, [T, 2]."""


@dataclass(frozen=True)
class Layout:
    """Pairs: texts 2i and 2i + 1 are row i. Queries: first all rows, then the documents.

    Windows: the windows of a row follow each other.
    """

    kind: Literal["pairs", "queries", "windows"]
    rows: int
    own: tuple[int, ...] = ()
    """Of each query the document that is the query itself, -1 = none; it is never found."""
    windows: Windows | None = None


def best_span(logits: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The best span of a window, [4]: sum of logits, first and last token, sum of position 0.

    Args:
        logits: [T, 2].
        counted: bool [T], True at tokens of the context, and at position 0.
    """
    inside = counted.copy()
    inside[:1] = False
    starts, ends = np.where(inside[:, None], logits.astype(np.float64), 2 * LOWEST).T
    padded = np.concatenate([ends, np.full(LONGEST_ANSWER - 1, 2 * LOWEST)])
    sums = starts[:, None] + np.lib.stride_tricks.sliding_window_view(padded, LONGEST_ANSWER)
    first, further = divmod(int(sums.argmax()), LONGEST_ANSWER)
    return np.array([sums[first, further], first, first + further, float(logits[0].sum())])


def token_labels(
    spans: NDArray[np.int32], inside: NDArray[np.bool_], answer: tuple[int, int] | None
) -> NDArray[np.int64]:
    """The label of each token of a window, [T].

    Args:
        spans: characters of the context that each token stands for, [T, 2].
        inside: bool [T], True at tokens of the context.
        answer: first character of the right answer, and the one after it; (-1, -1) = there is
            no answer, None = it is not known.
    """
    labels = np.where(inside, 0, IGNORE).astype(np.int64)
    labels[0] = 0
    if answer is None:
        return labels
    start, end = answer
    at = np.flatnonzero(inside & (spans[:, 1] > start) & (spans[:, 0] < end))
    read = spans[inside]
    whole = start >= 0 and len(at) and read[0, 0] <= start and end <= read[-1, 1]
    first, last = (at[0], at[-1]) if whole else (0, 0)
    labels[first] += START
    labels[last] += END
    return labels
