"""Removes pieces from a model's tokenizer and embedding table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.model import Model

from .trimmed import renumbered_config, trimmed_tokenizer


def with_pieces(model: Model, kept: Sequence[int]) -> Model:
    """The model with a tokenizer of only these pieces. Weights and sizes are unchanged."""
    assert model.tokenizer is not None
    return replace(
        model,
        tokenizer=trimmed_tokenizer(model.tokenizer, tuple(kept)),
        kept_pieces=tuple(kept),
        kept_config=renumbered_config(model.kept_config, kept),
    )


def trimmed_model(model: Model, kept: Sequence[int]) -> Model:
    """The model with the embedding rows of these pieces, and a tokenizer with their new ids.

    Args:
        model: a model with a tokenizer, from which no pieces were removed yet.
        kept: the ids to keep in order, including the padding id. Some tokens have no embedding
            row, such as tokens that were added later. These tokens have no row in the new
            table either.

    Raises:
        ModelError: positions are counted from the padding id, and this id would change.
    """
    e = model.encoder
    rows = torch.tensor([x for x in kept if x < e.vocab])
    pad = list(kept).index(e.pad_id)
    if e.positions_from == "padding" and pad != e.pad_id:
        raise ModelError(
            f"positions are counted from the padding's id {e.pad_id}, which would be {pad}: "
            f"the tokenizer has no piece for some id below {e.pad_id}"
        )
    lookups = family_of(e).embeddings(e).lookups
    tables = [f"{x.table}.weight" for x in lookups if x.source == "ids"]
    weights = dict(model.weights) | {x: model.weights[x][rows] for x in tables}
    encoder = replace(e, vocab=len(rows), pad_id=pad)
    return replace(with_pieces(model, kept), encoder=encoder, weights=weights)


def needed_ids(model: Model) -> set[int]:
    """Ids that the model uses apart from texts: the padding id and the ids in its config."""
    e = model.encoder
    found = set(range(e.pad_id + 1)) if e.positions_from == "padding" else {e.pad_id}
    for name, value in model.kept_config.items():
        if name.endswith("_token_id"):
            found |= {x for x in (value if isinstance(value, list) else [value])
                      if isinstance(x, int)}  # fmt: skip
    return found


def looks_up_by_number(model: Model) -> bool:
    """True if a table is read at numbers computed from ids, such as a bag's table of pairs."""
    lookups = family_of(model.encoder).embeddings(model.encoder).lookups
    return any(x.source in ("segments", "pairs") for x in lookups)
