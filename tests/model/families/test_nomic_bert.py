"""NomicBERT and GTE against transformers, with random weights."""

from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.registry import find_family
from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity

MODEL_TYPE = "nomic_bert"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 600,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "one type": {"type_vocab_size": 1},
    "wide heads": {"head_dim": 12},
    "base": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [5, 560])
def test_the_same_as_transformers(tmp_path: Path, length: int, variant: str) -> None:
    for head in HEADS:
        check_parity(tmp_path / head, MODEL_TYPE, head, length, **TINY | VARIANTS[variant])


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("head", HEADS)
def test_pruned_mixed_refitted(tmp_path: Path, head: Head, check: Any) -> None:
    check(tmp_path, MODEL_TYPE, head, **TINY)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"rope_parameters": {"rope_type": "yarn"}}, "only the default rope_type"),
    ({"rope_scaling": {"factor": 2.0}}, "only the default rope_type"),
    ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
    ({"rope_theta": 0.5}, "rope_theta is 0.5, it must be above 1"),
    ({"rope_theta": True}, "rope_theta is True"),
    ({"head_dim": 7}, "head_dim is 7, rotary positions need pairs"),
    ({"hidden_act": "swiglu"}, "activation 'swiglu' is not supported"),
]


@pytest.mark.parametrize("model_type", ["nomic_bert", "gte"])
@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_variants_that_are_not_supported_are_named(
    changes: dict[str, Any], text: str, model_type: str
) -> None:
    with pytest.raises(ModelError, match=text):
        find_family(model_type).sizes(TINY | changes)


def test_the_spelling_of_nomics_own_code_is_named() -> None:
    with pytest.raises(ModelError, match="names sizes as Nomic's own code does"):
        find_family(MODEL_TYPE).sizes({"n_embd": 768, "n_head": 12, "vocab_size": 30528})


def test_bases_are_read_from_old_and_new_configs() -> None:
    family = find_family(MODEL_TYPE)
    assert family.sizes(TINY).constant("base") == 1000
    assert family.sizes(TINY | {"rope_theta": 77}).constant("base") == 77
    assert find_family("gte").sizes(TINY).constant("base") == 160_000
