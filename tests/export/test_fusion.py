"""ONNX Runtime's fusions: they fire on every layer, change no number, and leave no trace."""

import logging
import os
from pathlib import Path

import numpy as np
import onnx
import pytest

from prumux.export.graph.fusion import counts, fuse
from prumux.export.graph.graph import build
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from tests.helpers.factory import Family, random_batch, random_model

FAMILIES: tuple[Family, ...] = ("bert", "roberta", "distilbert", "electra")
SHAPES = {
    "dense": ((12, 12, 12, 12), (64, 64, 64, 64)),
    "uneven": ((6, 4, 12, 9), (64, 24, 40, 8)),
    "holes": ((6, 0, 12, 9), (64, 64, 0, 64)),
    "gone": ((6, 0, 12, 0), (64, 0, 64, 0)),
}


def difference(model: Model, proto: onnx.ModelProto) -> float:
    """Largest difference of a logit from the torch module's, on padded rows."""
    inputs = random_batch(model).inputs()
    logits = run(EncoderModule(model), inputs)
    assert np.abs(logits).max() > 0.1
    found = OrtEngine(proto.SerializeToString(), threads=1).run(inputs)
    return float(np.abs(logits - found).max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_stay_before_and_after_fusion(family: Family, shape: str) -> None:
    heads, ffn = SHAPES[shape]
    model = random_model(family, heads, ffn)
    plain = build(model)
    assert counts(plain) == {}
    assert difference(model, plain) < 1e-4
    blocks = sum(h > 0 for h in heads)
    for attention in (False, True):
        fused = fuse(plain, attention)
        assert difference(model, fused) < 1e-4
        found = counts(fused)
        assert found.get("Attention", 0) == (blocks if attention else 0)
        assert found["EmbedLayerNormalization"] == 1
        norms = blocks + sum(f > 0 for f in ffn)
        assert found["SkipLayerNormalization"] == norms
        assert found["BiasGelu"] == sum(f > 0 for f in ffn) + (family == "electra")


def test_head_counts_are_each_layers_own() -> None:
    fused = fuse(build(random_model(heads=(6, 4, 12, 9))), attention=True)
    found = [
        onnx.helper.get_node_attr_value(node, "num_heads")
        for node in fused.graph.node
        if node.op_type == "Attention"
    ]
    assert found == [6, 4, 12, 9]


def test_padding_on_the_left_and_holes_in_the_mask() -> None:
    model = random_model()
    inputs = random_batch(model).inputs()
    inputs["attention_mask"][0, :3] = 0
    inputs["attention_mask"][2, 0] = 1
    inputs["attention_mask"][3] = 0
    logits = run(EncoderModule(model), inputs)
    for attention in (False, True):
        fused = fuse(build(model), attention)
        found = OrtEngine(fused.SerializeToString(), threads=1).run(inputs)
        np.testing.assert_allclose(found, logits, atol=1e-4)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "relu", "silu"])
def test_every_activation(activation: str) -> None:
    model = random_model(heads=(4, 3), activation=activation)
    plain = build(model)
    assert difference(model, plain) < 1e-4
    assert difference(model, fuse(plain, attention=True)) < 1e-4


def test_the_last_block_stays_open_with_early_pooling() -> None:
    model = random_model(heads=(6, 4, 9, 0), pool_early=True)
    fused = fuse(build(model), attention=True)
    assert counts(fused)["Attention"] == 2
    assert difference(model, fused) < 1e-4


def test_the_graph_given_is_left_alone_and_a_file_is_as_good(tmp_path: Path) -> None:
    plain = build(random_model(heads=(4, 3)))
    before = plain.SerializeToString()
    first = fuse(plain, attention=True).SerializeToString()
    assert plain.SerializeToString() == before
    onnx.save_model(plain, tmp_path / "x.onnx")
    assert fuse(tmp_path / "x.onnx", attention=True).SerializeToString() == first


def test_nothing_is_said_or_left_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    model = random_model(heads=(4, 3), vocab=30)  # fewer words than positions: it would warn
    with caplog.at_level(logging.DEBUG):
        fuse(build(model), attention=True)
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")
    assert os.listdir(tmp_path) == []  # noqa: PTH208
    assert logging.root.manager.disable == logging.NOTSET


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime.transformers.optimizer", None)
    with pytest.raises(MissingError) as caught:
        fuse(build(random_model(heads=(4,))), attention=True)
    assert "pip install 'prumux[cpu]'" in str(caught.value)
