"""Rows and batches for models with a smaller tokenizer of their own."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from prumux.optimizer.base.errors import DataError, GateError
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.tokenize import Encoded, encode, row_limit
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder

from .context import Context

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def own_rows(encoded: Encoded, model: Model) -> Encoded:
    """Tokenise the same texts again with a model's own tokenizer.

    The result is `encoded` itself if the model keeps all pieces of the given tokenizer.

    Raises:
        DataError: a row of words has more tokens than before, and words are cut off.
    """
    if model.kept_pieces is None:
        return encoded
    assert model.tokenizer is not None
    # Candidates share cached rows: sizes that encoding does not read are set to constants.
    sizes = replace(model.encoder, layers=(), mux=None, hidden=1, head_dim=1)
    return _encoded_again(encoded, model.tokenizer, sizes)


def own_context(
    ctx: Context, model: Model, certify: Encoded, batch: int, length: int | None
) -> Context:
    """The context with rows that a model's own tokenizer encoded.

    The result is `ctx` itself if the model keeps all pieces of the given tokenizer.

    Args:
        ctx: the context of the given model.
        model: a model that passes made from the given one.
        certify: the rows of the workload, encoded with the given tokenizer.
        batch: rows in a batch.
        length: number of tokens of every row; None = as in the data.
    """
    if model.kept_pieces is None:
        return ctx
    return replace(
        ctx,
        fit=own_rows(ctx.fit, model),
        train=None,
        select=None if ctx.select is None else own_rows(ctx.select, model),
        workload=workload(own_rows(certify, model), batch, length, ctx.arrivals),
    )


def other_pieces(encoded: Encoded, model: Model) -> float:
    """Share of texts that a model's own tokenizer splits differently from the given one.

    Args:
        encoded: the texts, encoded with the given tokenizer.
        model: a model with a trimmed vocabulary.
    """
    if model.kept_pieces is None or not len(encoded):
        return 0.0
    found, given = own_rows(encoded, model).ids, np.array(model.kept_pieces)
    other = [not np.array_equal(given[found[i]], ids) for i, ids in enumerate(encoded.ids)]
    return float(np.mean(other))


def check_pieces(encoded: Encoded, model: Model, unknown: int | None) -> None:
    """Check a trimmed vocabulary on texts.

    A text must keep its pieces if the vocabulary has all of them. No text may get more unknown
    pieces.

    Truncated rows are left out. Their missing text is unknown here. A truncated word may also
    be split differently, because a piece of its missing end was removed.

    Args:
        encoded: the texts, encoded with the given tokenizer.
        model: a model that passes made from the given one.
        unknown: id of the unknown piece in the given tokenizer.

    Raises:
        GateError: a text breaks one of the two rules.
    """
    if model.kept_pieces is None:
        return
    assert model.tokenizer is not None
    found, given = own_rows(encoded, model).ids, np.array(model.kept_pieces)
    most = row_limit(model.tokenizer, model.encoder, None, pair=False)
    for i, before in enumerate(encoded.ids):
        after = given[found[i]]
        if max(len(before), len(after)) >= most:
            continue
        if np.isin(before, given).all() and not np.array_equal(before, after):
            raise GateError(
                f"row {i + 1} has kept pieces only, {len(before)} of them, and {len(after)} "
                "others with the smaller vocabulary\nplease report it"
            )
        more = int((after == unknown).sum()) - int((before == unknown).sum())
        if more > 0:
            raise GateError(
                f"row {i + 1} has {more} more unknown pieces with the smaller vocabulary\n"
                "please report it"
            )


@lru_cache(maxsize=4)
def _encoded_again(
    encoded: Encoded, tokenizer: PreTrainedTokenizerBase, encoder: Encoder
) -> Encoded:
    assert encoded.given is not None, "the texts of these rows are unknown"
    found = encode(encoded.given, tokenizer, encoder)
    if encoded.scored is None:
        return replace(
            found, labels=encoded.labels, layout=encoded.layout, groups=encoded.groups
        )
    for i, (before, after) in enumerate(zip(encoded.scored, found.scored or (), strict=True)):
        if before.sum() != after.sum():
            raise DataError(
                f"row {i + 1} has {before.sum()} words in {len(before)} tokens; with fewer "
                f"pieces {after.sum()} words fill {len(after)} tokens, the rest is cut off\n"
                "keep more pieces, as with trim-vocabulary{margin=1}"
            )
    return found
