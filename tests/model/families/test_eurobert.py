"""EuroBERT against transformers, with random weights: no checkpoint was at hand."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.families.registry import find_family
from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity, given, pooled

MODEL_TYPE = "eurobert"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 600,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "mask_token_id": 3,
}


@pytest.mark.parametrize("length", [5, 560])
@pytest.mark.parametrize(("head", "pooling"), pooled("late", "mean", "bos"))
def test_the_same_as_transformers(
    tmp_path: Path, head: Head, length: int, pooling: str
) -> None:
    check_parity(tmp_path, MODEL_TYPE, head, length, classifier_pooling=pooling, **TINY)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("head", "pooling"), pooled("late", "bos"))
def test_pruned_mixed_refitted(tmp_path: Path, head: Head, pooling: str, check: Any) -> None:
    check(tmp_path, MODEL_TYPE, head, classifier_pooling=pooling, **TINY)


def test_late_pooling_costs_the_first_map_at_every_position(tmp_path: Path) -> None:
    _, model = given(tmp_path, MODEL_TYPE, HEADS[0], **TINY)
    early = replace(model.encoder, constants=(("base", 10_000.0), ("late", False)))
    assert count(model.encoder, 10).macs - count(early, 10).macs == 9 * 24 * 24


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"attention_bias": True}, "attention_bias is True, only false"),
    ({"num_key_value_heads": 1}, "num_key_value_heads is 1, num_attention_heads is 3"),
    ({"classifier_pooling": "max"}, "classifier_pooling is 'max', it must be bos, mean, late"),
    ({"rope_parameters": {"rope_type": "linear"}}, "only the default rope_type"),
    ({"head_dim": 5}, "head_dim is 5, rotary positions need pairs"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_variants_that_are_not_supported_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        find_family(MODEL_TYPE).sizes(TINY | changes)
