"""Tokenise rows, and cut them into padded batches.

Axis letters: N rows, B rows of a batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.model.row_groups import batch_rows, filled, like_length, padded
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.tasks.labels import IGNORE, Ints
from prumux.optimizer.tasks.layout import Layout, Windows

from .encodings import Side, aligned, encodings, first_subwords, words_of
from .layouts import flattened, joined_windows, layout_of, windowed
from .ragged import Ragged

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .rows import Rows

_IDS, _TYPES = attrgetter("ids"), attrgetter("type_ids")


@dataclass(frozen=True, eq=False)
class Encoded:
    """Tokenised rows without padding."""

    ids: Ragged
    """Token ids of each row."""
    types: Ragged | None
    """Token type ids of each row; None if the model has no token types."""
    labels: NDArray[Any] | tuple[Ints, ...] | None
    """Labels of the rows; None = unlabelled.

    Labels of whole rows have the form of `Rows.labels`. Labels of words are one int64 array
    [T] a row. The array has the word's label at the first sub-word, and -100 at all other
    tokens."""
    pad_id: int
    """The id of the padding token."""
    scored: tuple[NDArray[np.bool_], ...] | None = None
    """For rows of words, one bool array [T] a row; True on the first sub-word of each word."""
    groups: NDArray[np.int64] | None = None
    """The number of each row's query, [N], for tasks that score queries."""
    layout: Layout | None = None
    """The layout that maps labelled rows to texts; None = each text is one row."""
    given: Rows | None = None
    """The rows before they were tokenised; None = unknown."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scored_rows(self) -> int:
        """Number of scored rows, or of queries if the task scores queries."""
        if self.layout is not None:
            return self.layout.rows
        return len(self) if self.groups is None else len(np.unique(self.groups))

    def texts(self) -> Encoded:
        """One row for each text, without a layout.

        Windows get the labels of their tokens. Texts of other layouts get no labels. Without
        a layout, the result is this object.
        """
        if self.layout is None:
            return self
        windows = self.layout.windows
        if windows is None:
            return replace(self, labels=None, layout=None)
        return replace(self, labels=windows.tokens, layout=None, given=None)

    @property
    def lengths(self) -> Ints:
        """Number of tokens of each row, special tokens included, [N]."""
        return self.ids.lengths

    def take(self, indices: Sequence[int] | Ints) -> Encoded:
        """The texts at these indices, in this order; see `texts`."""
        at = np.asarray(indices, dtype=np.int64)
        texts = self.texts()
        labels = texts.labels
        if isinstance(labels, tuple):
            labels = tuple(labels[i] for i in at)
        elif labels is not None:
            labels = labels[at]
        return Encoded(
            ids=self.ids.take(at),
            types=None if self.types is None else self.types.take(at),
            labels=labels,
            pad_id=self.pad_id,
            scored=None if self.scored is None else tuple(self.scored[i] for i in at),
            groups=None if self.groups is None else self.groups[at],
            given=None if texts.given is None else texts.given.take(at),
        )


@dataclass(frozen=True, eq=False)
class Batch:
    """Rows padded on the right to one length."""

    rows: Ints
    """Indices into the `Encoded`: [B]."""
    input_ids: Ints
    attention_mask: Ints
    token_type_ids: Ints | None
    labels: NDArray[Any] | None
    """[B]; for labels of words [B, T], with -100 on padding."""
    groups: Ints | None = None
    """The number of each row's query, [B]."""

    def inputs(self) -> dict[str, Ints]:
        """The arrays [B, T] under their ONNX names, in the ONNX order."""
        found = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        if self.token_type_ids is not None:
            found["token_type_ids"] = self.token_type_ids
        return found


def encode(
    rows: Rows,
    tokenizer: PreTrainedTokenizerBase,
    encoder: Encoder,
    max_length: int | None = None,
    side: Side | None = None,
) -> Encoded:
    """Tokenise rows. Cut off tokens beyond `max_length` at the end that `side` names.

    The tokenizer's own settings do not change.

    Args:
        rows: texts, pairs or words, with or without labels.
        tokenizer: the model's tokenizer.
        encoder: the model's sizes.
        max_length: largest number of tokens a row, special tokens included; None = as many as
            model and tokenizer take.
        side: the end at which tokens are cut off; None = the tokenizer's setting.

    Raises:
        UsageError: `max_length` does not fit the model or leaves no room for text.
        DataError: the tokenizer's ids do not fit the model, or a row has no tokens.
    """
    layout = layout_of(rows) if encoder.sentence else None
    if layout is not None:
        single = encode(flattened(rows), tokenizer, encoder, max_length, side)
        return replace(single, labels=rows.labels, layout=layout)
    pair = rows.text_b is not None
    length = row_limit(tokenizer, encoder, max_length, pair)
    if not len(rows):
        none = Ragged.of(())
        return Encoded(
            none,
            none if encoder.token_types else None,
            rows.labels,
            encoder.pad_id,
            given=rows,
        )
    side = side or ("left" if tokenizer.truncation_side == "left" else "right")
    id_parts, type_parts, words = [], [], []
    windows: list[Windows] = []
    parts = encodings(rows, tokenizer, length, side)
    if rows.stride is not None:
        parts = windowed(rows, tokenizer, length, side, windows)
    for found in parts:
        id_parts.append(Ragged.of(map(_IDS, found)))
        if encoder.token_types:
            type_parts.append(_token_types(found, id_parts[-1], rows))
        if rows.words is not None:
            words += [words_of(x, side) for x in found]
    ids = Ragged.joined(id_parts)
    types = Ragged.joined(type_parts) if encoder.token_types else None
    empty = np.flatnonzero(ids.lengths == 0)
    if len(empty):
        raise DataError(
            f"row {empty[0] + 1} has no tokens, and the tokenizer adds no special ones: "
            "remove it"
        )
    _check_range("token ids", ids, "a vocabulary", encoder.vocab)
    if types is not None:
        _check_range("token type ids", types, "token types", encoder.token_types)
    if rows.words is None:
        layout = joined_windows(windows, len(rows)) if windows else None
        coded = Encoded(ids, types, rows.labels, encoder.pad_id, groups=rows.groups)
        return replace(coded, layout=layout, given=rows)
    return _of_words(Encoded(ids, types, None, encoder.pad_id, given=rows), rows, words)


def _of_words(coded: Encoded, rows: Rows, words: Sequence[Sequence[int | None]]) -> Encoded:
    """Add the labels of words, each at the word's first sub-word."""
    scored = tuple(first_subwords(x) for x in words)
    labels = None
    if isinstance(rows.labels, tuple):
        labels = tuple(
            aligned(rows.labels[i], words[i], first) for i, first in enumerate(scored)
        )
    return replace(coded, labels=labels, scored=scored)


def _token_types(found: Sequence[Any], ids: Ragged, rows: Rows) -> Ragged:
    """Token type ids of each row.

    A tokenizer gives all tokens of a single text the same type. It also gives each special
    token a fixed type. So, if the longest single text has type 0 only, all single texts do.
    """
    if rows.text_b is None:
        longest = found[int(ids.lengths.argmax())]
        if not all(longest.special_tokens_mask) and not any(longest.type_ids):
            return Ragged(np.zeros_like(ids.values), ids.ends)
    return Ragged.of(map(_TYPES, found))


def row_limit(
    tokenizer: PreTrainedTokenizerBase, encoder: Encoder, asked: int | None, pair: bool
) -> int:
    """The largest number of tokens of a row: `asked`, or the limit of model and tokenizer.

    Raises:
        UsageError: `asked` does not fit the model or leaves no room for text.
    """
    most = encoder.most_tokens
    specials = int(tokenizer.num_special_tokens_to_add(pair))
    length = int(min(most, tokenizer.model_max_length)) if asked is None else asked
    if length > most:
        raise UsageError(
            f"length {length} is over the model's {most} positions: --length {most}"
        )
    if length <= specials:
        cure = f"use, say, --length {min(most, 128)}"
        if most <= specials:
            cure = f"the model has {most} positions, give one with more"
        elif asked is None:
            cure = f"write model_max_length {most} into tokenizer_config.json"
        raise UsageError(
            f"length {length} leaves no room for text beside {specials} special tokens: {cure}"
        )
    return length


def _check_range(what: str, rows: Ragged, holder: str, size: int) -> None:
    top = int(rows.values.max(initial=0))
    if top >= size:
        raise DataError(
            f"the tokenizer gives {what} up to {top}, the model has {holder} of size {size}: "
            "they do not belong together; use the tokenizer that was saved with the model"
        )


def batches(
    encoded: Encoded,
    size: int,
    by_length: bool = True,
    pad_to: int | None = None,
    seed: int | None = None,
) -> list[Batch]:
    """Cut rows into batches of `size` rows. The last batch may be smaller.

    The same arguments give the same batches.

    Args:
        encoded: the rows.
        size: rows per batch.
        by_length: sort the rows by length, short ones first, to pad less.
        pad_to: pad every batch to this length; None = to the longest row of the batch.
        seed: shuffles rows of equal length; None = they keep their order.

    Raises:
        UsageError: `size` is below 1, or a row is longer than `pad_to`.
    """
    if size < 1:
        raise UsageError(f"a batch of {size} rows is not possible: use, say, --batch 32")
    lengths = encoded.lengths
    longest = int(lengths.max(initial=0))
    if pad_to is not None and longest > pad_to:
        raise UsageError(
            f"a row has {longest} tokens, more than the fixed length {pad_to}: "
            f"use --length {longest}, or encode with max_length={pad_to}"
        )
    order = like_length(lengths, seed) if by_length else np.arange(len(encoded))
    return [collate(encoded, order[i : i + size], pad_to) for i in range(0, len(order), size)]


def groups_of(encoded: Encoded, size: int, n: int) -> list[Batch]:
    """Batches, sorted by length, of whole groups of n rows for a model that mixes n rows.

    Rows of the batch are repeated to complete its last group (see `model/row_groups.py`).
    """
    found = batches(encoded, batch_rows(size, n))
    if n == 1:
        return found
    return [collate(encoded, b.rows[filled(len(b.rows), n)]) for b in found]


def block(encoded: Encoded, start: int, stop: int) -> dict[str, Ints]:
    """The inputs of neighbouring rows: arrays [B, T] as in `Batch`, padded to the longest."""
    lengths = encoded.lengths[start:stop]
    real = np.arange(int(lengths.max())) < lengths[:, None]
    found = {
        "input_ids": encoded.ids.block(start, stop, real, encoded.pad_id),
        "attention_mask": real.astype(np.int64),
    }
    if encoded.types is not None:
        found["token_type_ids"] = encoded.types.block(start, stop, real, 0)
    return found


def collate(encoded: Encoded, rows: Ints, pad_to: int | None = None) -> Batch:
    """Make one batch of the rows at these indices, padded to `pad_to` or the longest row."""
    lengths = encoded.lengths[rows]
    length = int(lengths.max()) if pad_to is None else pad_to
    labels = encoded.texts().labels
    return Batch(
        rows=rows,
        input_ids=encoded.ids.padded(rows, length, encoded.pad_id),
        attention_mask=(np.arange(length) < lengths[:, None]).astype(np.int64),
        token_type_ids=None
        if encoded.types is None
        else encoded.types.padded(rows, length, 0),
        labels=padded([labels[i] for i in rows], length, IGNORE)
        if isinstance(labels, tuple)
        else (None if labels is None else labels[rows]),
        groups=None if encoded.groups is None else encoded.groups[rows],
    )
