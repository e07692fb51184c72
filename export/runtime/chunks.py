"""Answer texts in chunks of similar length; tokenise a chunk while the engine runs another.

A tokenizer makes an object of a few kilobytes for each text. The objects of one chunk fit into
the processor's caches. The next chunk can be tokenised while the engine runs this chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.row_groups import Ints, RowLogits

CHUNK_ROWS = 1024
Encode = Callable[[Rows], Encoded]


def answer_chunks(
    rows: Rows,
    multiple: int,
    encode: Encode,
    run: Callable[[Encoded], RowLogits],
    *,
    overlap: bool,
) -> RowLogits:
    """Compute logits [N, C] of texts or pairs, in their order.

    Rows are first sorted by their number of letters, so that a chunk has rows of similar
    length.

    Args:
        rows: texts or pairs.
        multiple: the number of rows of a chunk is a multiple of this, if there are enough
            rows.
        encode: tokenises rows.
        run: computes the logits of a chunk.
        overlap: True = tokenise the next chunk in another thread while this chunk runs.

    Raises:
        DataError: the error of `encode`; it names the row by its number among all rows.
    """
    size = max(1, CHUNK_ROWS // multiple) * multiple
    if len(rows) <= size:
        return run(encode(rows))
    order = by_letters(rows)
    chunks = _cut(rows, order, size)
    try:
        coded = _ahead(encode, chunks) if overlap else map(encode, chunks)
        found = np.concatenate([np.asarray(run(x)) for x in coded])
    except DataError:
        encode(rows)  # this error names the row by its number among all rows
        raise
    logits: NDArray[np.float32] = np.empty_like(found)
    logits[order] = found
    return logits


def by_letters(rows: Rows) -> Ints:
    """Indices of texts or pairs, sorted by the number of letters, fewest first."""
    letters = np.fromiter(map(len, rows.text_a), np.int64, len(rows))
    if rows.text_b is not None:
        letters += np.fromiter(map(len, rows.text_b), np.int64, len(rows))
    return np.argsort(letters, kind="stable")


def _cut(rows: Rows, order: Ints, size: int) -> list[Rows]:
    at = order.tolist()
    first = _taken(rows.text_a, at)
    second = None if rows.text_b is None else _taken(rows.text_b, at)
    return [
        Rows(first[i : i + size], None if second is None else second[i : i + size])
        for i in range(0, len(at), size)
    ]


def _taken(texts: Sequence[str], at: list[int]) -> tuple[str, ...]:
    return tuple(map(texts.__getitem__, at))


def _ahead(encode: Encode, chunks: Sequence[Rows]) -> Iterator[Encoded]:
    """Yield tokenised chunks in order. The next chunk is tokenised while the caller works."""
    with ThreadPoolExecutor(1, thread_name_prefix="prumux-tokens") as pool:
        waiting = pool.submit(encode, chunks[0])
        for chunk in chunks[1:]:
            found = waiting.result()
            waiting = pool.submit(encode, chunk)
            yield found
        yield waiting.result()
