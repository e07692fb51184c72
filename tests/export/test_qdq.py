"""int8 as Q/DQ: which products, with which scales, and whether the answers stay."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from prumux.export.graph.builder import Precision
from prumux.export.graph.graph import SLOTS, build
from prumux.export.graph.graph_file import verify
from prumux.export.graph.qdq import products, quantize, quantized
from prumux.export.graph.sensitivity import divergence, worst
from prumux.export.runtime import ort
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model
from tests.helpers.tensorrt_list import not_listed

SHAPES = ("dense", "uneven", "early", "mux", "tokens")


def shaped(shape: str) -> Model:
    """Wide enough for the answers to depend on more than a few numbers."""
    heads, ffn = ((4, 4), (64, 64)) if shape == "dense" else ((3, 0, 4), (0, 50, 7))
    kind: Any = "token-classification" if shape == "tokens" else "text-classification"
    early = shape == "early"
    model = random_model(heads=heads, ffn=ffn, labels=3, task=kind, pool_early=early)
    return multiplexed(model, n=2, at=1) if shape == "mux" else model


def some(model: Model, count: int = 3) -> list[dict[str, Any]]:
    return [random_batch(model, 8, 10, seed=i).inputs() for i in range(count)]


@pytest.fixture(autouse=True)
def _exact_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processors without VNNI add products in 16 bits, which is not what Q/DQ says."""
    real = ort.session_options

    def options(threads: int) -> Any:
        made = real(threads)
        made.add_session_config_entry("session.x64quantprecision", "1")
        return made

    monkeypatch.setattr(ort, "session_options", options)


def opened(proto: onnx.ModelProto) -> OrtEngine:
    return OrtEngine(proto.SerializeToString(), threads=1)


def initial(proto: onnx.ModelProto) -> dict[str, Any]:
    return {x.name: numpy_helper.to_array(x) for x in proto.graph.initializer}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_int8_keeps_the_answers(shape: str, precision: Precision) -> None:
    model = shaped(shape)
    plain = build(model, precision=precision, portable=True)
    before = plain.SerializeToString()
    found = quantize(plain, some(model))
    assert plain.SerializeToString() == before
    verify(found)
    assert not_listed(found) == []
    assert sorted(quantized(found)) == sorted(products(plain))
    assert [x.name for x in found.graph.input] == [x.name for x in plain.graph.input]
    assert found.metadata_props == plain.metadata_props
    assert (shape == "mux") == any(x.key == SLOTS for x in found.metadata_props)
    inputs = random_batch(model, 64, 12, seed=99).inputs()
    reference, logits = run(EncoderModule(model), inputs), opened(found).run(inputs)
    real = inputs["attention_mask"] != 0 if shape == "tokens" else slice(None)
    off = np.abs(logits[real] - reference[real])
    assert 1e-4 < off.mean() < 0.1 * reference[real].std()
    assert (logits[real].argmax(-1) == reference[real].argmax(-1)).mean() > 0.9


def test_weights_have_a_scale_a_column_and_nothing_a_zero_point() -> None:
    model = shaped("uneven")
    plain = build(model)
    found = quantize(plain, some(model))
    values, weights = initial(found), initial(plain)
    made_by = {x.output[0]: x for x in found.graph.node}
    for node in found.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert not values[node.input[2]].any()
            assert values[node.input[2]].dtype == np.int8
    nodes = {x.name: x for x in found.graph.node}
    before = {x.name: x for x in plain.graph.node}
    for name in quantized(found):
        taken, weight = (made_by[x] for x in nodes[name].input)
        assert values[taken.input[1]].shape == ()
        exact = weights[before[name].input[1]]
        ints, scales = values[weight.input[0]], values[weight.input[1]]
        assert ints.dtype == np.int8
        assert scales.shape == (exact.shape[1],)
        assert [x.i for x in weight.attribute if x.name == "axis"] == [1]
        assert (np.abs(ints * scales - exact) <= scales * 0.51).all()
        assert (np.abs(ints).max(0) == 127).all()


def test_only_products_read_what_int8_left() -> None:
    model = shaped("dense")
    found = quantize(build(model), some(model))
    made_by = {x.output[0]: x.op_type for x in found.graph.node}
    readers = {
        node.op_type
        for node in found.graph.node
        if any(made_by.get(x) == "DequantizeLinear" for x in node.input)
    }
    assert readers == {"MatMul"}
    kinds = [x.op_type for x in found.graph.node]
    assert (
        kinds.count("QuantizeLinear") == 2 * 4 + 2
    )  # x once for q, k and v; each inner value


def test_some_can_be_left_out() -> None:
    model = shaped("dense")
    plain = build(model)
    keep = ("layers.0.ffn.down", "head.output.matmul")
    found = quantize(plain, some(model), keep)
    out = {"layers.0.ffn.down.matmul", "head.output.matmul"}
    assert set(quantized(found)) == set(products(plain)) - out
    kept = initial(found)["layers.0.ffn.down.weight"]
    np.testing.assert_array_equal(kept, initial(plain)["layers.0.ffn.down.weight"])
    nothing = quantize(plain, some(model), products(plain))
    assert nothing.SerializeToString() == plain.SerializeToString()
    assert nothing is not plain


def test_the_same_rows_give_the_same_bytes() -> None:
    model = shaped("mux")
    plain = build(model)

    def bytes_of(rows: Sequence[Any]) -> bytes:
        return bytes(quantize(plain, rows).SerializeToString(deterministic=True))

    assert bytes_of(some(model)) == bytes_of(some(model))
    assert bytes_of(some(model)) != bytes_of(some(model, 1))


def test_what_cannot_be_quantised() -> None:
    model = shaped("dense")
    plain = build(model)
    with pytest.raises(UsageError, match="int8 needs rows of your data"):
        quantize(plain, [])
    with pytest.raises(UsageError, match=r"no 'layers\.9\.ffn\.up' to keep") as caught:
        quantize(plain, some(model), ["layers.9.ffn.up"])
    assert "such as layers.0.attention.query would be" in str(caught.value)


def test_the_files_get_smaller() -> None:
    model = shaped("dense")
    plain = build(model)
    found = quantize(plain, some(model))
    names = {x.name: x.data_type for x in found.graph.initializer}
    assert sum(v == TensorProto.INT8 for k, v in names.items() if "weight" in k) >= 14
    assert found.ByteSize() < plain.ByteSize()


def test_the_product_that_suffers_most_is_found() -> None:
    """One inner unit far above all others takes the scale of what goes into `down`."""
    model = shaped("dense")
    weights = dict(model.weights)
    up, down = "layers.1.ffn.up.bias", "layers.1.ffn.down.weight"
    weights[up], weights[down] = weights[up].clone(), weights[down].clone()
    weights[up][3], weights[down][:, 3] = 300.0, weights[down][:, 3] / 300
    model = replace(model, weights=weights)
    plain, rows = build(model), some(model)
    found = quantize(plain, rows)
    names = [x.removesuffix(".matmul") for x in quantized(found)]
    each = divergence(model, names, make_context(model, random_batch(model, rows=32)))
    assert sorted(each) == sorted(names)
    spared_names = worst(each, most=math.inf, share=0.5)
    assert spared_names == ("layers.1.ffn.down",)
    reference = run(EncoderModule(model), rows[2])

    def off(proto: onnx.ModelProto) -> float:
        return float(np.abs(opened(proto).run(rows[2]) - reference).mean())

    assert off(quantize(plain, rows, spared_names)) < 0.5 * off(found)


def test_how_many_are_spared() -> None:
    each = {"a": 1.0, "b": 6.0, "c": 3.0, "d": 0.0}
    assert worst(each, most=math.inf) == ()
    assert worst(each, most=math.inf, share=0.5) == ("b",)
    assert worst(each, most=math.inf, share=0.75) == ("b", "c")
    assert worst(each, most=math.inf, share=1.0) == ("b", "c", "a")
    assert worst(each, most=4.0) == ("b",)
    assert worst(each, most=10.0) == ()
    assert worst({}, most=0.0, share=0.75) == ()
