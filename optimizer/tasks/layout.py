"""Layouts of scored rows that consist of several texts. A model runs these texts one by one.

A question is run with each window of its context. Labels of a window's tokens:

- -100: the token cannot be in an answer.
- 0: the token can be in an answer.
- 1 is added if the right answer starts at the token.
- 2 is added if the right answer ends at the token.

Position 0 means "no answer". Its label gets both marks (1 and 2) if the window does not
contain the whole right answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .labels import IGNORE

TextKind = Literal["text", "query", "document"]
"""The kind of a text. An embedding model may have a prompt for each kind."""

LONGEST_ANSWER = 30
"""Largest number of tokens in an answer, as in SQuAD's baselines."""
START, END = 1, 2
"""Marks that are added to the label of the right answer's first and last token."""
LOWEST = -1e9
"""The logit that replaces the logit of a position outside the context."""


@dataclass(frozen=True, eq=False)
class Windows:
    """The windows in which contexts are read: N questions, W windows, T tokens per window."""

    contexts: tuple[str, ...]
    """The context of each question, [N]."""
    question: NDArray[np.int64]
    """The number of each window's question, [W], ascending."""
    tokens: tuple[NDArray[np.int64], ...]
    """The label of each token, one array [T] per window."""
    spans: tuple[NDArray[np.int32], ...]
    """Start and end of each token in the context's characters, one array [T, 2] per window."""


@dataclass(frozen=True)
class Layout:
    """The order of the texts of scored rows.

    - pairs: texts 2i and 2i + 1 form row i.
    - queries: first all queries, which are the rows, then all documents.
    - windows: the windows of a row follow each other.
    """

    kind: Literal["pairs", "queries", "windows"]
    rows: int
    own: tuple[int, ...] = ()
    """For each query, the document that is the query itself; rankings leave it out; -1 =
    none."""
    windows: Windows | None = None


def best_span(logits: NDArray[Any], counted: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The best span of a window, [4]: sum of logits, first and last token, sum of position 0.

    Args:
        logits: start and end logits, [T, 2].
        counted: bool [T], True at tokens of the context and at position 0.
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
        spans: start and end of each token in the context's characters, [T, 2].
        inside: bool [T], True at tokens of the context.
        answer: index of the right answer's first character, and index after its last one.
            (-1, -1) = there is no answer. None = the answer is unknown.
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
