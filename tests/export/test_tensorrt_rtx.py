"""Real engines, built by TensorRT for RTX on this CPU."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prumux.export.graph.qdq import quantized
from prumux.export.tensorrt import TensorRt
from prumux.export.trt.build import NOT_OPENED, BuildOptions, build_plan
from prumux.export.trt.engine import open_plan
from prumux.export.trt.library import RTX, gpu_here
from prumux.optimizer.base.errors import GateError, MissingError, PrumuxError, UsageError
from prumux.optimizer.model.module import EncoderModule, run
from tests.helpers.factory import make_context, random_batch, random_model
from tests.helpers.rtx import FAMILIES, PRECISIONS, SHAPES, cases, made, wrong_types
from tests.helpers.tensorrt_api import rtx_api

WHOLE = os.environ.get("PRUMUX_MATRIX") == "1"


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    rtx_api()  # skips, or fails, where it is not installed


def emitted(model: Any, folder: Path, precision: Any = "fp16", **options: Any) -> Any:
    batches = [random_batch(model, 6, length, seed=length) for length in (5, 12)]
    target = TensorRt(precision, flavor="rtx", **options)
    return target.emit(model, make_context(model, *batches), folder)


def test_the_selection_has_every_pair() -> None:
    found = cases(whole=False)
    assert len(cases(whole=True)) == 176
    assert len({(f, s) for f, s, _ in found}) == len(FAMILIES) * len(SHAPES) == 44
    assert len({(s, p) for _, s, p in found}) == len(SHAPES) * len(PRECISIONS)
    assert len({(f, p) for f, _, p in found}) == len(FAMILIES) * len(PRECISIONS)


@pytest.mark.parametrize(("family", "shape", "precision"), cases(WHOLE))
def test_an_engine_is_built_with_the_types_of_the_graph(
    family: str, shape: str, precision: str, tmp_path: Path
) -> None:
    model = made(tmp_path / "given", family, shape)
    done = emitted(model, tmp_path, precision)
    assert done.files == (
        *("model.onnx", "tensorrt.sh", "model.rtx.plan", "model.rtx.plan.json"),
    )
    assert (tmp_path / "model.rtx.plan").stat().st_size > 1_000_000
    assert done.notes["parity"][precision] <= done.notes["limit"]
    wrong, kinds = wrong_types(tmp_path / "model.onnx")
    assert wrong == []
    proto = onnx.load(tmp_path / "model.onnx")
    nodes = Counter(x.op_type for x in proto.graph.node)
    assert kinds["MATRIX_MULTIPLY"] >= nodes["MatMul"] >= 3
    assert kinds.get("QUANTIZE", 0) == nodes["QuantizeLinear"]
    assert kinds.get("DEQUANTIZE", 0) == nodes["DequantizeLinear"]
    assert (nodes["QuantizeLinear"] > 0) == (precision == "int8")
    facts = json.loads((tmp_path / "model.rtx.plan.json").read_text())
    assert (facts["precision"], facts["engine"]) == (precision, "tensorrt-rtx")
    assert facts["slots"] == model.encoder.slots


@pytest.mark.skipif(gpu_here(), reason="a GPU is here: the engine itself answers")
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_without_a_gpu_the_typed_graph_answers(precision: Any, tmp_path: Path) -> None:
    model = random_model(heads=(4, 4), labels=3)
    done = emitted(model, tmp_path, precision)
    assert done.notes["types_unseen"] == NOT_OPENED
    engine = TensorRt(precision, flavor="rtx").engine(tmp_path, 1)
    facts = dict(engine.describe())
    assert (facts["engine"], facts["instead_of"]) == ("onnxruntime", "tensorrt-rtx")
    inputs = random_batch(model, 7, 20).inputs()
    found, exact = engine.run(inputs), run(EncoderModule(model), inputs)
    limit = TensorRt(precision).limit([exact])
    off = float(np.abs(found - exact).max())
    assert off < limit
    assert (off > 1e-4) == (precision != "fp32")  # it does round


@pytest.mark.skipif(gpu_here(), reason="a GPU is here")
def test_running_a_plan_needs_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="TensorRT for RTX needs an NVIDIA GPU"):
        open_plan(tmp_path / "model.rtx.plan")


def test_compute_capabilities(tmp_path: Path) -> None:
    model = random_model(heads=(4,))
    emitted(model, tmp_path / "most")
    emitted(model, tmp_path / "two", capabilities=("sm75", "sm89"))
    both = [tmp_path / x / "model.rtx.plan" for x in ("most", "two")]
    assert both[0].read_bytes() != both[1].read_bytes()
    told = [json.loads(x.with_name(f"{x.name}.json").read_text())["built_for"] for x in both]
    assert told == [
        "compute capabilities 8.0, 8.6, 8.9 and 12.0",
        "compute capabilities 7.5, 8.9",
    ]
    options = BuildOptions("fp16", False, capabilities=("sm90",))
    with pytest.raises(PrumuxError, match="cannot build for sm90"):
        build(tmp_path / "most", options)


def build(folder: Path, options: BuildOptions) -> Any:
    plan = folder / "other.rtx.plan"
    return build_plan(folder / "model.onnx", plan, (), (), options, flavor=RTX, timings=folder)


def test_other_types_than_asked_are_refused(tmp_path: Path) -> None:
    emitted(random_model(heads=(4,)), tmp_path, "fp32")
    for options in (BuildOptions("fp16", False), BuildOptions("fp32", True)):
        with pytest.raises(GateError, match="asked for"):
            build(tmp_path, options)


def test_a_graph_that_the_parser_refuses(tmp_path: Path) -> None:
    emitted(random_model(heads=(4,)), tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    proto.graph.node[0].domain = proto.graph.node[0].op_type = "NoSuchThing"
    proto.opset_import.append(onnx.helper.make_opsetid("NoSuchThing", 1))
    onnx.save(proto, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r"TensorRT for RTX .* refuses the graph: NoSuchT"):
        build(tmp_path, BuildOptions("fp16", False))


def test_a_build_that_fails(tmp_path: Path) -> None:
    """Without a profile for its dynamic shapes no engine can be built."""
    emitted(random_model(heads=(4,)), tmp_path)
    with pytest.raises(PrumuxError, match="could not build") as caught:
        build(tmp_path, BuildOptions("fp16", False))
    assert caught.value.exit_code == 1


def test_int8_weights_are_int8_in_the_engine(tmp_path: Path) -> None:
    """The engine shrinks by the bytes that the graph's weights do."""
    model = random_model(heads=(8, 8), ffn=(2048, 2048), hidden=512, head_dim=64)
    sizes = {}
    for precision in ("fp16", "int8"):
        folder = tmp_path / precision
        emitted(model, folder, precision, spare=0, tolerance=5.0)
        proto = onnx.load(folder / "model.onnx")
        weights = sum(len(x.raw_data) for x in proto.graph.initializer)
        sizes[precision] = weights, (folder / "model.rtx.plan").stat().st_size
    assert len(quantized(proto)) >= 12
    saved_in_graph = sizes["fp16"][0] - sizes["int8"][0]
    saved_in_engine = sizes["fp16"][1] - sizes["int8"][1]
    assert saved_in_graph > 6_000_000
    assert saved_in_engine > 0.8 * saved_in_graph
