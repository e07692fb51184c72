"""Graphs of embedding models: pooling, linear maps and normalisation are in them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

from prumux.export.graph.graph import STATES, VECTORS, build
from prumux.export.graph.graph_file import verify
from prumux.export.graph.int8 import lower
from prumux.export.onnx import Onnx
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.source import load_model
from prumux.optimizer.tasks import neighbours
from prumux.passes.pool_early import PoolEarly
from prumux.passes.slice import slice_model
from tests.helpers.embeddings import POOL_CONFIGS, sentence_folder
from tests.helpers.factory import make_context, random_batch

CONCATENATED = {"word_embedding_dimension": 24, "pooling_mode": ["mean", "cls", "max"]}
CONFIGS = POOL_CONFIGS | {"several": CONCATENATED}
MODULES = ((), ("Normalize",), ("Dense", "Normalize", "Dense"))


def made(folder: Path, pool: str, modules: tuple[str, ...] = ("Normalize",)) -> Model:
    return load_model(str(sentence_folder(folder, CONFIGS[pool], modules)))


def vectors(model: Model, proto: onnx.ModelProto, inputs: Any) -> Any:
    """Of torch and of ONNX Runtime."""
    engine = OrtEngine(proto.SerializeToString(), threads=1)
    return run(EncoderModule(model).eval(), inputs), engine.run(inputs)


@pytest.mark.parametrize("modules", MODULES)
@pytest.mark.parametrize("pool", CONFIGS)
def test_the_graph_gives_the_vectors(
    pool: str, modules: tuple[str, ...], tmp_path: Path
) -> None:
    model = made(tmp_path, pool, modules)
    proto = build(model, states=True)
    verify(proto)
    assert [x.name for x in proto.graph.output] == [VECTORS, STATES]
    inputs = random_batch(model).inputs()
    torch_vectors, found = vectors(model, proto, inputs)
    assert found.shape == (5, model.encoder.labels)
    assert found == pytest.approx(torch_vectors, abs=1e-5)


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("pool", CONFIGS)
def test_without_padding_the_vectors_are_the_same(
    pool: str, early: bool, tmp_path: Path
) -> None:
    model = made(tmp_path, pool)
    model = PoolEarly().run(model, make_context(model)) if early else model
    padded, ragged = (build(model, ragged=x, states=True) for x in (False, True))
    verify(ragged)
    assert [x.name for x in ragged.graph.output] == [VECTORS, STATES]
    inputs = random_batch(model).inputs()
    real = inputs["attention_mask"]
    assert real.min() == 0
    one, other = (
        InferenceSession(x.SerializeToString()).run([VECTORS, STATES], inputs)
        for x in (padded, ragged)
    )
    assert other[0] == pytest.approx(one[0], abs=1e-5)
    assert other[1].shape == one[1].shape
    if one[1].shape[1] > 1:  # states of padding mean nothing
        assert other[1][real == 1] == pytest.approx(one[1][real == 1], abs=1e-5)


@pytest.mark.parametrize("opset", [18, 20, 23])
@pytest.mark.parametrize("pool", CONFIGS)
def test_every_opset(pool: str, opset: int, tmp_path: Path) -> None:
    model = made(tmp_path, pool)
    proto = build(model, opset)
    verify(proto)
    assert [x.name for x in proto.graph.output] == [VECTORS]
    one, other = vectors(model, proto, random_batch(model).inputs())
    assert other == pytest.approx(one, abs=1e-5)


@pytest.mark.parametrize("pool", CONFIGS)
def test_half_precision_keeps_the_direction(pool: str, tmp_path: Path) -> None:
    model = made(tmp_path, pool, ("Dense", "Normalize"))
    proto = build(model, precision="fp16", states=True)
    verify(proto)
    assert [x.name for x in proto.graph.output] == [VECTORS]  # states would need a copy
    one, other = vectors(model, proto, random_batch(model, length=20).inputs())
    assert neighbours.cosines(one, other).min() > 0.999


@pytest.mark.parametrize("pool", ["mean", "several"])
def test_int8_keeps_about_the_direction(pool: str, tmp_path: Path) -> None:
    model = made(tmp_path, pool, ("Dense", "Normalize"))
    one, other = vectors(
        model, lower(build(model, states=True), ()), random_batch(model).inputs()
    )
    assert neighbours.cosines(one, other).min() > 0.97


@pytest.mark.parametrize("pool", ["cls", "mean", "several"])
def test_a_pruned_model(pool: str, tmp_path: Path) -> None:
    model = made(tmp_path, pool, ("Dense",))
    masks = Masks.full(model.encoder)
    heads, ffn = (tuple(x.clone() for x in y) for y in (masks.heads, masks.ffn))
    heads[0][1:] = False
    heads[1][:] = False
    ffn[2][5:] = False
    hidden = masks.hidden.clone()
    if pool != "several":
        hidden[[3, 7, 8]] = False
    masked = replace(model, masks=Masks(heads, ffn, hidden))
    sliced = slice_model(masked)
    inputs = random_batch(model).inputs()
    expected = run(EncoderModule(masked).eval(), inputs)
    found, onnx_found = vectors(sliced, build(sliced), inputs)
    assert found.shape == (5, 16)
    assert found == pytest.approx(expected, abs=1e-5)
    assert onnx_found == pytest.approx(expected, abs=1e-5)
    assert count(sliced.encoder, 8).macs < count(model.encoder, 8).macs


def test_the_first_position_alone_is_computed_for_cls(tmp_path: Path) -> None:
    model = made(tmp_path, "cls")
    early = PoolEarly().run(model, make_context(model))
    assert early.encoder.pool_early
    inputs = random_batch(model).inputs()
    proto = build(early, states=True)
    verify(proto)
    one, other = vectors(early, proto, inputs)
    assert one == pytest.approx(run(EncoderModule(model).eval(), inputs), abs=1e-5)
    assert other == pytest.approx(one, abs=1e-5)
    states = proto.graph.output[1].type.tensor_type.shape.dim
    assert (states[1].dim_value, states[2].dim_value) == (1, 24)
    mean = made(tmp_path / "mean", "mean")
    assert PoolEarly().run(mean, make_context(mean)) is mean


@pytest.mark.parametrize("fusion", ["none", "basic", "all"])
def test_the_fused_graph_gives_states_and_vectors(fusion: Any, tmp_path: Path) -> None:
    model = made(tmp_path, "mean")
    ctx = make_context(model)
    out = tmp_path / "out"
    target = Onnx(fusion=fusion, precision="fp32")
    target.emit(model, ctx, out)
    target.bundle(model, ctx, out)
    inputs = ctx.workload[0].inputs()
    session = InferenceSession(out / "model.onnx")
    found, states = session.run([VECTORS, STATES], inputs)
    mask = inputs["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    assert found == pytest.approx(neighbours.unit(mean), abs=1e-4)
    pbtxt = (out / "triton" / "prumux_engine" / "config.pbtxt").read_text()
    assert f'name: "{VECTORS}"' in pbtxt
    assert np.shape(states)[2] == 24
