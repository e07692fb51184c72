"""Calls of the tokenizer's Rust library for rows, windows and lists of words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.labels import IGNORE, Ints

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .rows import Rows

Side = Literal["left", "right"]
PART_CHARACTERS = 250_000
"""Number of characters that are tokenised in one call."""


def encodings(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, length: int, side: Side
) -> Iterator[list[Any]]:
    """The encoding of each row, cut to `length` tokens at `side`, in parts.

    The parts save memory, because the library also keeps every token that is cut off.

    Raises:
        DataError: the library fails, for instance because it lacks the unknown token.
    """
    given: list[Any] = list(rows.text_a)
    if rows.words is not None:
        given = [list(x) for x in rows.words]
    elif rows.text_b is not None:
        given = list(zip(given, rows.text_b, strict=True))
    for part in _parts(given):
        with _settings(tokenizer, length, side):
            found = _encoded(part, tokenizer, split=rows.words is not None)
        yield found


def window_encodings(
    rows: Rows, tokenizer: PreTrainedTokenizerBase, length: int, side: Side, stride: int
) -> Iterator[list[list[Any]]]:
    """The encodings of the windows of each question, one encoding a window, in parts.

    In each window the question precedes the context. If the tokenizer pads on the left, the
    question follows the context, as in transformers' pipeline.

    Args:
        rows: questions with contexts.
        tokenizer: the model's tokenizer.
        length: tokens of a window. A question may fill `length - 2 * stride` of them, special
            tokens included; longer questions are cut.
        side: `right` = windows run from the start of the context to its end; `left` = from its
            end to its start.
        stride: tokens of the context that two windows share.
    """
    assert rows.text_b is not None
    most = length - 2 * stride - int(tokenizer.num_special_tokens_to_add(True))
    first = context_index(tokenizer) == 0
    strategy = "only_first" if first else "only_second"
    for part in _parts([*zip(rows.text_a, rows.text_b, strict=True)]):
        with _settings(tokenizer, most, "right"):
            questions = _cut(tokenizer, [x for x, _ in part], most)
        pairs = [*zip(questions, [x for _, x in part], strict=True)]
        with _settings(tokenizer, length, side, stride=stride, strategy=strategy):
            given = [x[::-1] for x in pairs] if first else pairs
            found = _encoded(given, tokenizer, offsets=True)
        yield [[x, *x.overflowing] for x in found]


def context_index(tokenizer: PreTrainedTokenizerBase) -> int:
    """Index of the context in the tokenizer's pair: 1, or 0 if the tokenizer pads left."""
    return int(tokenizer.padding_side != "left")


def _cut(tokenizer: PreTrainedTokenizerBase, texts: list[str], most: int) -> list[str]:
    """Cut texts to at most `most` tokens each. Tokenising a cut text again keeps the limit."""
    cut, todo = list(texts), list(range(len(texts)))
    while todo:
        found = _encoded([cut[i] for i in todo], tokenizer, offsets=True, specials=False)
        over = [(i, x.offsets[-1]) for i, x in zip(todo, found, strict=True) if x.overflowing]
        for i, (start, end) in over:
            # A character may consist of several tokens, and the last tokens are cut off.
            size = len(cut[i])
            cut[i] = cut[i][: end if end < size else min(start, size - 1)]
        todo = [i for i, _ in over]
    return cut


def _encoded(
    part: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    *,
    split: bool = False,
    offsets: bool = False,
    specials: bool = True,
) -> list[Any]:
    """The encodings of some texts or pairs.

    A call of the tokenizer itself gives the same ids, but takes about 10 microseconds more a
    row.

    Args:
        part: texts, pairs or lists of words.
        tokenizer: the model's tokenizer.
        split: True if `part` contains lists of words.
        offsets: True if the encodings need the positions of the tokens in the text.

    Raises:
        DataError: the Rust library fails.
    """
    backend = tokenizer.backend_tokenizer
    try:
        if split:
            return list(backend.encode_batch(part, is_pretokenized=True))
        run = backend.encode_batch if offsets else backend.encode_batch_fast
        return list(run(part, add_special_tokens=specials))
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is not a subclass of Exception
        said = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise DataError(
            f"the tokenizer fails on these rows: {said}\n"
            "use the tokenizer that was saved with the model"
        ) from error


def _parts(given: list[Any]) -> Iterator[list[Any]]:
    """Cut the rows into lists of about `PART_CHARACTERS` characters, in order."""
    sizes = [len(x) if isinstance(x, str) else sum(map(len, x)) for x in given]
    part = np.cumsum(sizes) // PART_CHARACTERS
    starts = np.flatnonzero(np.diff(part, prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(given)], strict=True):
        yield given[start:end]


@contextmanager
def _settings(
    tokenizer: PreTrainedTokenizerBase, length: int, side: Side, **more: Any
) -> Iterator[None]:
    """Turn truncation on and padding off, and restore the tokenizer's settings afterwards.

    Otherwise these settings would be saved with the tokenizer.
    """
    backend = tokenizer.backend_tokenizer
    before = backend.truncation, backend.padding, backend.encode_special_tokens
    backend.no_padding()
    backend.enable_truncation(length, direction=side, **more)
    backend.encode_special_tokens = tokenizer.split_special_tokens
    try:
        yield
    finally:
        backend.encode_special_tokens = before[2]
        if before[0]:
            backend.enable_truncation(**before[0])
        else:
            backend.no_truncation()
        if before[1]:
            backend.enable_padding(**before[1])


def words_of(found: Any, side: Side) -> list[int | None]:
    """Index of each token's word; None for special tokens and words with a missing start."""
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
    """Labels of tokens, [T]: the word's label at its first token, -100 at all others."""
    found = np.full(len(words), IGNORE, dtype=np.int64)
    for i, word in enumerate(words):
        if first[i] and word is not None:
            found[i] = labels[word]
    return found
