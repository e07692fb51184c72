"""DeBERTa-v2 and v3 against transformers, with random weights: no checkpoint was at hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.deberta_v2 import modeling_deberta_v2

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.deberta_v2 import table_rows
from prumux.optimizer.model.families.registry import find_family
from prumux.passes.prune_layers import PruneLayers
from prumux.passes.slice import slice_model
from tests.helpers.factory import make_context
from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity, given

MODEL_TYPE = "deberta-v2"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "type_vocab_size": 0,
    "pad_token_id": 0,
    "relative_attention": True,
    "position_buckets": 16,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
}
"""As in DeBERTa-v3."""
VARIANTS: dict[str, dict[str, Any]] = {
    "v3": {},
    "maps of their own": {"share_att_key": False},
    "c2p only": {"pos_att_type": ["c2p"], "share_att_key": False},
    "p2c as a text": {"pos_att_type": "p2c", "norm_rel_ebd": "none"},
    "a row for every distance": {"position_buckets": -1, "max_relative_positions": 9},
    "positions and types": {"position_biased_input": True, "type_vocab_size": 2},
    "plain": {"relative_attention": False, "norm_rel_ebd": "none"},
    "tanh": {"pooler_hidden_act": "tanh", "hidden_act": "gelu_new"},
}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [1, 5, 60])
def test_the_same_as_transformers(tmp_path: Path, length: int, variant: str) -> None:
    head = HEADS[length % 2]
    check_parity(tmp_path, MODEL_TYPE, head, length, **TINY | VARIANTS[variant])


@pytest.mark.parametrize("head", HEADS)
def test_rows_longer_than_any_distance_of_the_table(tmp_path: Path, head: Head) -> None:
    wide = {"max_position_embeddings": 512, "position_buckets": 256}
    check_parity(tmp_path, MODEL_TYPE, head, 600, **TINY | wide)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize(
    ("variant", "head"),
    [
        ("v3", HEADS[0]),
        ("v3", HEADS[1]),
        ("maps of their own", HEADS[0]),
        ("p2c as a text", HEADS[1]),
    ],
)
def test_pruned_mixed_refitted(tmp_path: Path, variant: str, head: Head, check: Any) -> None:
    check(tmp_path, MODEL_TYPE, head, **TINY | VARIANTS[variant])


@pytest.mark.parametrize(("span", "furthest"), [(256, 512), (256, 200), (16, 40), (4, 1000)])
def test_every_distance_has_the_row_of_transformers(span: int, furthest: int) -> None:
    bucket: Any = modeling_deberta_v2.make_log_bucket_position
    rows = table_rows(span, furthest)
    half = len(rows) // 2
    apart = torch.arange(-furthest - 99, furthest + 100)
    wanted = (bucket(-apart, span, furthest).long() + span).clamp(0, 2 * span - 1)
    assert np.array_equal(rows[apart.clamp(-half, half).numpy() + half], wanted.numpy())


def test_without_attention_the_table_is_gone(tmp_path: Path) -> None:
    _, model = given(tmp_path, MODEL_TYPE, HEADS[0], **TINY)
    table = "embeddings.distance.weight"
    assert tuple(model.weights[table].shape) == (32, 24)
    cut = slice_model(PruneLayers(attention=3).run(model, make_context(model)))
    assert table not in cut.weights
    cut.verify()


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"conv_kernel_size": 3}, "conv_kernel_size is 3: the convolution of DeBERTa-v2 xlarge"),
    ({"pos_att_type": ["p2p"]}, r"pos_att_type is \['p2p'\]"),
    ({"pos_att_type": [["c2p"]]}, r"pos_att_type is \[\['c2p'\]\]"),
    ({"pos_att_type": None}, "relative_attention is true and pos_att_type is empty"),
    ({"relative_attention": "yes"}, "relative_attention is 'yes', it must be true or false"),
    ({"share_att_key": 1}, "share_att_key is 1, it must be true or false"),
    ({"norm_rel_ebd": "batch"}, "norm_rel_ebd is 'batch', it must be layer_norm or none"),
    ({"position_buckets": 15}, "position_buckets is 15 .* an even number from 4 to 124"),
    ({"position_buckets": 126}, "position_buckets is 126 .* from 4 to 124"),
    ({"position_buckets": 2**40}, "position_buckets is 1099511627776, it must be"),
    ({"pooler_hidden_size": 20}, "pooler_hidden_size is 20, it must be"),
    ({"attention_head_size": 4}, "attention_head_size is 4, it must be"),
    ({"embedding_size": 12}, "embedding_size is 12, hidden_size is 24: the map between"),
    ({"pooler_hidden_act": "mish"}, "pooler_hidden_act is 'mish', supported"),
]


@pytest.mark.parametrize(("changes", "text"), WRONG)
def test_variants_that_are_not_supported_are_named(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        find_family(MODEL_TYPE).sizes(TINY | changes)
