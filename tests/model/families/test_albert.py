"""ALBERT against transformers, with random weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prumux.export.graph.graph import build
from prumux.export.graph.int8 import lower, lowered_names
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.families.registry import find_family
from prumux.passes.prune_heads import PruneHeads
from prumux.passes.slice import slice_model
from tests.helpers.factory import make_context, random_batch
from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity, given, onnx_logits
from tests.helpers.masking import logits, worst

MODEL_TYPE = "albert"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "embedding_size": 10,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
}


@pytest.mark.parametrize("embedding", [10, 24])
@pytest.mark.parametrize("length", [5, 60])
@pytest.mark.parametrize("head", HEADS)
def test_the_same_as_transformers(
    tmp_path: Path, head: Head, length: int, embedding: int
) -> None:
    check_parity(tmp_path, MODEL_TYPE, head, length, **TINY | {"embedding_size": embedding})


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("head", HEADS)
def test_pruned_mixed_refitted(tmp_path: Path, head: Head, check: Any) -> None:
    check(tmp_path, MODEL_TYPE, head, **TINY)


def test_a_graph_stores_one_layer_until_pruning_parts_them(tmp_path: Path) -> None:
    wide = {"hidden_size": 64, "intermediate_size": 128}
    _, model = given(tmp_path, MODEL_TYPE, HEADS[0], **TINY | wide)
    name = "layers.2.ffn.up.weight"
    assert torch.equal(model.weights[name], model.weights["layers.0.ffn.up.weight"])
    graph = build(model).graph
    stored = {x.name for x in graph.initializer}
    assert {x for x in stored if x.startswith("layers.")} == {
        x for x in stored if x.startswith("layers.0.")
    }
    parts = len([x for x in stored if x.startswith("layers.0.")])
    assert parts >= 10  # zero biases and norms of ones are stored once as well
    low = lower(build(model))
    assert len(lowered_names(low)) > parts / 2  # products of all layers read one weight
    cut = slice_model(PruneHeads(ratio=0.4).run(model, make_context(model)))
    stored = {x.name for x in build(cut).graph.initializer}
    assert "layers.1.attention.query.weight" in stored
    assert name not in stored
    batch = random_batch(cut)
    assert worst(onnx_logits(cut, batch), logits(cut, batch)) < 1e-4


@pytest.mark.parametrize("key", ["num_hidden_groups", "inner_group_num"])
def test_several_groups_are_refused(key: str) -> None:
    with pytest.raises(ModelError, match=f"{key} is 2, it must be .* from 1 to 1"):
        find_family(MODEL_TYPE).sizes(TINY | {key: 2})
    assert np.isfinite(find_family(MODEL_TYPE).sizes(TINY | {key: 1}).hidden)
