"""Training rows from unlabelled text, with the lengths of the task's rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.data.formats import read_file
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.table import check_characters, listed
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Ints = NDArray[np.int64]
COLUMNS = ("text", "sentence")
MOST_ROWS = 100_000
"""Largest number of rows made from a file. The rest of the file is ignored."""


def plain_rows(path: str, model: Model, like: Encoded, seed: int) -> Encoded:
    """Cut a file's texts into pieces; make a row of each piece and the special tokens.

    Args:
        path: parquet, jsonl, csv or tsv with a column `text` or `sentence`.
        model: contains the tokenizer.
        like: rows of the task. The lengths of pieces are drawn from their lengths.
        seed: seed for drawing lengths.

    Raises:
        DataError: the file cannot be read or contains no text.
        UsageError: the model has no tokenizer.
    """
    if model.tokenizer is None:
        raise UsageError(f"'{path}' cannot be tokenised: the model has no tokenizer")
    texts = texts_of(path)
    random = np.random.default_rng(seed)
    ids: list[tuple[int, ...]] = []
    with _without_padding(model.tokenizer):
        before, after = _ends(model.tokenizer)
    room = np.maximum(1, like.lengths - len(before) - len(after))
    for words in token_ids(texts, model.tokenizer):
        for piece in _pieces(words, room, random):
            ids.append((*before, *piece, *after))
        if len(ids) >= MOST_ROWS:
            break
    if not ids:
        raise DataError(f"{path} holds no text")
    rows = Ragged.of(ids)
    types = None if like.types is None else replace(rows, values=np.zeros_like(rows.values))
    return Encoded(rows, types, None, like.pad_id)


def texts_of(path: str) -> list[str]:
    """Read the texts of a file: its column `text` or `sentence`.

    Raises:
        DataError: the file cannot be read or contains no text.
    """
    table = read_file(Path(path), set(COLUMNS))
    name = next((x for x in COLUMNS if x in table.names), None)
    if name is None:
        raise DataError(
            f"{path} has no column of text; it has: {listed(table.names)}\n"
            f"name one of them '{COLUMNS[0]}'"
        )
    texts = table.columns[name]
    for i, text in enumerate(texts):
        if not isinstance(text, str | None):
            table.fail(i, f"'{name}' is {text!r:.40}, not text: write a string")
        check_characters(table, i, name, text or "")
    found = [x for x in texts if x]
    if not found:
        raise DataError(f"{path} holds no text in its column '{name}'")
    return found


def _pieces(words: list[int], room: Ints, random: np.random.Generator) -> Iterator[list[int]]:
    """Cut a text's tokens into pieces whose lengths are drawn from `room`."""
    at = 0
    while at < len(words):
        size = int(random.choice(room))
        yield words[at : at + size]
        at += size


def token_ids(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    """Token ids of each text, whole and without special tokens."""
    for start in range(0, len(texts), 1000):
        with _without_padding(tokenizer):
            found = tokenizer.backend_tokenizer.encode_batch(
                texts[start : start + 1000], add_special_tokens=False
            )
        yield from (x.ids for x in found)


@contextmanager
def _without_padding(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Turn truncation and padding off; restore the tokenizer's settings afterwards."""
    backend = tokenizer.backend_tokenizer
    cut, padded = backend.truncation, backend.padding
    backend.no_truncation()
    backend.no_padding()
    try:
        yield
    finally:
        if cut:
            backend.enable_truncation(**cut)
        if padded:
            backend.enable_padding(**padded)


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens before and after a row's text."""
    found = tokenizer.backend_tokenizer.encode("a")
    inner = [i for i, special in enumerate(found.special_tokens_mask) if not special]
    first, last = (inner[0], inner[-1]) if inner else (len(found.ids), len(found.ids))
    return found.ids[:first], found.ids[last + 1 :]
