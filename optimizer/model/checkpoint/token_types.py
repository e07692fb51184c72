"""Folds constant token types into other embeddings.

The exported graph then takes exactly the inputs that the model's tokenizer returns. The
tokenizers of RoBERTa, XLM-R, CamemBERT and some BERT checkpoints return no `token_type_ids`.
Without them, transformers uses type 0 at every position.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.weights import expected_shapes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INPUT = "token_type_ids"


def gives_types(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True if a tokenizer returns token types by default."""
    return INPUT in tokenizer.model_input_names


def fold_types(model: Model) -> Model:
    """Fold token type 0 in and remove the input. A model without types is unchanged."""
    e = model.encoder
    lookups = {x.source: x.table for x in family_of(e).embeddings(e).lookups}
    if "token_types" not in lookups:
        return model
    types = f"{lookups['token_types']}.weight"
    into = f"{lookups.get('positions', lookups['ids'])}.weight"
    weights = {k: x for k, x in model.weights.items() if k != types}
    weights[into] = weights[into] + model.weights[types][0]
    encoder = replace(e, token_types=0)
    if expected_shapes(encoder).keys() != weights.keys():
        return model  # a family of another package may always have the table
    return replace(model, encoder=encoder, weights=weights)
