"""Rows that consist of several texts. The model runs each text alone.

Such rows are pairs, queries with documents, or questions with the windows of their contexts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.layout import Layout, Windows, token_labels

from .encodings import Side, context_index, window_encodings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .rows import Rows

MOST_TOKENS = 384
"""Largest number of tokens in a window, the default of transformers' pipeline."""
STRIDE = 128
"""Default number of tokens that two windows share. Short windows share fewer."""


def layout_of(rows: Rows) -> Layout | None:
    """The layout that maps rows to the texts of `flattened`; None if each row is one text."""
    if rows.corpus is not None:
        return Layout("queries", len(rows), rows.own)
    return None if rows.text_b is None else Layout("pairs", len(rows))


def flattened(rows: Rows) -> Rows:
    """Rows of one text each, without labels.

    The two texts of a pair follow each other. Documents follow after all queries. Questions
    with contexts are returned unchanged, because the tokenizer makes their windows.
    """
    if rows.stride is not None:
        return rows
    texts = rows.text_a
    if rows.corpus is not None:
        texts = (*texts, *rows.corpus)
    elif rows.text_b is not None:
        texts = tuple(chain(*zip(texts, rows.text_b, strict=True)))
    return replace(rows, text_a=texts, text_b=None, corpus=None, own=(), labels=None)


def window_sizes(length: int, stride: int) -> tuple[int, int]:
    """The number of tokens of a window, and of the tokens that two windows share.

    Args:
        length: the most tokens that model and tokenizer take.
        stride: the requested number of shared tokens; 0 = `STRIDE`, but at most a third of
            the window.

    Raises:
        UsageError: `stride` is more than a third of a window.
    """
    length = min(length, MOST_TOKENS)
    most = max(1, length // 3)
    if stride > most:
        raise UsageError(
            f"--stride {stride} is over a third of a window of {length} tokens, which leaves "
            f"too little room for questions: --stride {most}"
        )
    return length, stride or min(STRIDE, most)


def windowed(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    side: Side,
    found: list[Windows],
) -> Iterator[list[Any]]:
    """The encodings of all windows of the questions, in parts.

    Args:
        rows: questions with contexts.
        tokenizer, side: as in `encode`.
        length: see `window_sizes`.
        found: list to which the `Windows` of each part are appended.
    """
    assert rows.text_b is not None
    length, stride = window_sizes(length, rows.stride or 0)
    specials = int(tokenizer.num_special_tokens_to_add(True))
    if length - 2 * stride <= specials:
        raise UsageError(
            f"a window of {length} tokens, of which the next one shares {stride}, has no room "
            f"for a question beside {specials} special tokens: use a model with more positions"
        )
    context, done = context_index(tokenizer), 0
    for part in window_encodings(rows, tokenizer, length, side, stride):
        counts = [len(x) for x in part]
        flat = [*chain.from_iterable(part)]
        numbers = done + np.repeat(np.arange(len(part)), counts)
        spans, tokens = [], []
        for number, x in zip(numbers.tolist(), flat, strict=True):
            where = np.array(x.offsets, np.int32).reshape(-1, 2)
            inside = np.array([y == context for y in x.sequence_ids], np.bool_)
            answer = None
            if rows.labels is not None:
                answer = int(rows.labels[number][0]), int(rows.labels[number][1])
            spans.append(where)
            tokens.append(token_labels(where, inside & (where[:, 1] > where[:, 0]), answer))
        texts = rows.text_b[done : done + len(part)]
        found.append(Windows(texts, numbers, tuple(tokens), tuple(spans)))
        done += len(part)
        yield flat


def joined_windows(parts: Sequence[Windows], questions: int) -> Layout:
    """One layout from the windows of all parts."""
    whole = Windows(
        tuple(chain.from_iterable(x.contexts for x in parts)),
        np.concatenate([x.question for x in parts]),
        tuple(chain.from_iterable(x.tokens for x in parts)),
        tuple(chain.from_iterable(x.spans for x in parts)),
    )
    return Layout("windows", questions, windows=whole)
