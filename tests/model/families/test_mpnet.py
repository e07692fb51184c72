"""MPNet against transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from prumux.optimizer.model.families.mpnet import buckets
from prumux.optimizer.model.model import Model
from prumux.passes.prune_heads import PruneHeads
from prumux.passes.slice import slice_model
from tests.helpers.factory import make_context
from tests.helpers.family_checks import CHECKS, HEADS, Head, check_parity, given

MODEL_TYPE = "mpnet"
TINY: dict[str, Any] = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 300,
    "pad_token_id": 1,
}


@pytest.mark.parametrize("length", [5, 40, 290])
@pytest.mark.parametrize("head", HEADS)
def test_the_same_as_transformers(tmp_path: Path, head: Head, length: int) -> None:
    check_parity(tmp_path, "mpnet", head, length, **TINY)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("head", HEADS)
def test_pruned_mixed_refitted(tmp_path: Path, head: Head, check: Any) -> None:
    check(tmp_path, "mpnet", head, **TINY)


def test_every_distance_has_the_bucket_of_transformers() -> None:
    distances = torch.arange(-511, 512)
    bucket: Any = MPNetEncoder.relative_position_bucket
    wanted = bucket(distances)
    assert np.array_equal(buckets(512), wanted.numpy())


def test_pruned_heads_cut_the_table_of_their_layer(tmp_path: Path) -> None:
    _, model = given(tmp_path, "mpnet", HEADS[0], **TINY)
    assert shared(model)
    cut = slice_model(PruneHeads(ratio=0.5).run(model, make_context(model)))
    for i, layer in enumerate(cut.encoder.layers):
        if layer.heads:
            table = cut.weights[f"layers.{i}.attention.relative.weight"]
            assert tuple(table.shape) == (32, layer.heads)
    assert sum(x.heads for x in cut.encoder.layers) < 12


def shared(model: Model) -> bool:
    """Whether all layers begin with one table."""
    tables = [model.weights[f"layers.{i}.attention.relative.weight"] for i in range(3)]
    return all(torch.equal(tables[0], x) for x in tables)
