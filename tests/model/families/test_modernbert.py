"""ModernBERT against transformers, with random weights: no checkpoint was at hand."""

from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.registry import find_family
from tests.helpers.family_checks import CHECKS, Head, check_parity, pooled

MODEL_TYPE = "modernbert"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 600,
    "local_attention": 10,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
}


@pytest.mark.parametrize("length", [5, 40, 560])
@pytest.mark.parametrize(("head", "pooling"), pooled("cls", "mean"))
def test_the_same_as_transformers(
    tmp_path: Path, head: Head, length: int, pooling: str
) -> None:
    check_parity(tmp_path, "modernbert", head, length, classifier_pooling=pooling, **TINY)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(("head", "pooling"), pooled("cls", "mean"))
def test_pruned_mixed_refitted(tmp_path: Path, head: Head, pooling: str, check: Any) -> None:
    check(tmp_path, "modernbert", head, classifier_pooling=pooling, **TINY)


def config(**changes: Any) -> dict[str, Any]:
    return TINY | {"model_type": "modernbert"} | changes


def test_configs_of_transformers_4_and_5_are_read() -> None:
    family = find_family("modernbert")
    old = family.sizes(config(global_rope_theta=8e4, local_rope_theta=5e3))
    assert old.constant("base_everywhere") == 8e4
    assert old.constant("base_in_window") == 5e3
    assert old.constant("local_layers") == (1, 2)
    assert old.constant("window") == 5
    new = family.sizes(
        config(
            layer_types=["full_attention", "sliding_attention"] * 2,
            rope_parameters={
                "full_attention": {"rope_type": "default", "rope_theta": 7e4},
                "sliding_attention": None,
            },
        )
    )
    assert new.constant("base_everywhere") == 7e4
    assert new.constant("base_in_window") == 1e4
    assert new.constant("local_layers") == (1, 3)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"mlp_bias": True}, "mlp_bias is True"),
        ({"causal_mask": True}, "causal_mask is True"),
        ({"layer_types": ["full_attention"]}, "it must name 4 layers"),
        ({"classifier_pooling": "max"}, "classifier_pooling is 'max'"),
        ({"classifier_activation": "mish"}, "classifier_activation is 'mish'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "yarn"}}},
            "only the default rope_type",
        ),
        ({"global_rope_theta": -1}, "rope_theta of full_attention is -1"),
    ],
)
def test_variants_that_are_not_supported_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        find_family("modernbert").sizes(config(**changes))
