"""Token types that never differ, folded into the other embeddings.

The graph then takes exactly the inputs that the model's tokenizer gives. The tokenizers of
RoBERTa, XLM-R and CamemBERT give no `token_type_ids`, and neither do some of BERT checkpoints;
transformers then uses type 0 at every position.
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
    """Whether a tokenizer gives token types when nothing is asked of it."""
    return INPUT in tokenizer.model_input_names


def fold_types(model: Model) -> Model:
    """The model with type 0 everywhere and without the input, or the model itself."""
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
        return model  # a family of another package that has the table at all times
    return replace(model, encoder=encoder, weights=weights)
