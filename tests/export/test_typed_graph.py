"""Graphs in fp16 and bf16: types as promised, finite, and the same answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from prumux.export.graph.builder import Precision
from prumux.export.graph.graph import LOW_OPSET, build
from prumux.export.graph.graph_file import verify
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.sizes import Activation, HeadKind
from tests.helpers.factory import Family, Kind, multiplexed, random_batch, random_model
from tests.helpers.tensorrt_list import LIST, not_listed, types_of

FAMILIES: tuple[Family, ...] = get_args(Family)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
LOW: tuple[Precision, ...] = ("fp16", "bf16")
ELEMENT = {
    "fp32": TensorProto.FLOAT,
    "fp16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}
TASKS: tuple[Kind, ...] = get_args(Kind)
SHAPES = ("dense", "uneven", "early", "mux", "late mux", "tokens", "token mux")


def shaped(family: Family, shape: str) -> Model:
    """A small model of one of the kinds that we export."""
    heads, ffn = ((4, 4, 4), (16, 16, 16)) if shape == "dense" else ((3, 0, 4), (5, 16, 0))
    task: Kind = "token-classification" if "token" in shape else "text-classification"
    early = shape in ("early", "late mux")
    model = random_model(family, heads, ffn, hidden=16, labels=3, task=task, pool_early=early)
    if "mux" in shape:
        return multiplexed(model, n=3, at=1 if shape == "late mux" else 0)
    return model


def opened(proto: onnx.ModelProto) -> OrtEngine:
    return OrtEngine(proto.SerializeToString(), threads=1)


def by_the_rules(proto: onnx.ModelProto, inputs: Any, name: str = "logits") -> Any:
    """A value of the graph by ONNX's own evaluator, which rounds after every operator."""
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(proto)
    return evaluator.run([name], dict(inputs))[0]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_graph_is_valid_typed_and_listed(
    family: Family, shape: str, precision: Precision
) -> None:
    proto = build(shaped(family, shape), precision=precision, portable=True)
    verify(proto)
    assert not_listed(proto) == []
    types = types_of(proto)
    floats = {k: v for k, v in types.items() if v not in (TensorProto.INT64, TensorProto.BOOL)}
    kept = {name for name, kind in floats.items() if kind != ELEMENT[precision]}
    counts = {
        x for x in kept if ".positions.count" in x
    }  # running sums: exact in float32 only
    assert kept - counts == (set() if precision == "fp32" else {"logits"})
    assert types["logits"] == TensorProto.FLOAT
    assert {types[x.name] for x in proto.graph.input} == {TensorProto.INT64}
    assert len(floats) > 30


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_fp16_gives_the_same_answers(family: Family, shape: str) -> None:
    model = shaped(family, shape)
    inputs = random_batch(model, rows=9).inputs()
    reference = run(EncoderModule(model), inputs)
    found = opened(build(model, precision="fp16")).run(inputs)
    assert found.dtype == np.float32
    real = slice(None) if model.encoder.pooled else inputs["attention_mask"] != 0
    agree(reference[real], found[real], 0.02)


def agree(reference: Any, found: Any, share: float) -> None:
    """Logits within a share of the largest one, and the labels of all that is not a tie."""
    limit = share * max(1.0, np.abs(reference).max())
    np.testing.assert_allclose(found, reference, atol=limit)
    ordered = np.sort(reference, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > 2 * limit
    assert clear.any()
    same = found.argmax(-1) == reference.argmax(-1)
    assert same[clear].all()


@pytest.mark.parametrize("shape", ["dense", "uneven", "late mux"])
@pytest.mark.parametrize("family", FAMILIES)
def test_bf16_gives_the_same_answers(family: Family, shape: str) -> None:
    """By the rules of ONNX alone: ONNX Runtime's CPU has few bf16 kernels."""
    model = shaped(family, shape)
    inputs = random_batch(model, rows=6).inputs()
    reference = run(EncoderModule(model), inputs)
    found = by_the_rules(build(model, precision="bf16"), inputs)
    assert found.dtype == np.float32
    agree(reference, found, 0.1)


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("head", ["tanh", "relu", "gelu"])
def test_every_activation_in_fp16(activation: Activation, head: HeadKind) -> None:
    model = random_model(heads=(4,), activation=activation, head=head, labels=3)
    inputs = random_batch(model).inputs()
    proto = build(model, precision="fp16")
    assert not_listed(proto) == []
    agree(run(EncoderModule(model), inputs), opened(proto).run(inputs), 0.02)


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu", "silu"])
def test_large_values_do_not_overflow_fp16(activation: Activation) -> None:
    """x ** 3 of gelu_tanh would, from 41 on; so would q k before it is divided."""
    model = random_model(heads=(4,), ffn=(16,), hidden=16, head_dim=16, activation=activation)
    weights = dict(model.weights)
    for part, factor in (
        ("ffn.up", 200.0),
        ("attention.query", 90.0),
        ("attention.key", 90.0),
    ):
        name = f"layers.0.{part}.weight"
        weights[name] = weights[name] * factor
    model = replace(model, weights=weights)
    inputs = random_batch(model).inputs()
    reference = run(EncoderModule(model), inputs)
    found = opened(build(model, precision="fp16")).run(inputs)
    assert np.isfinite(found).all()
    assert np.abs(found - reference).max() < 0.1 * max(1.0, np.abs(reference).max())
    products = scores_before_scaling(model, inputs)
    assert products.max() > torch.finfo(torch.float16).max


def scores_before_scaling(model: Model, inputs: Any) -> Any:
    """What fp16 would have to hold if the scores were divided after their product."""
    proto = build(model)
    at = "layers.0.attention.scores"
    proto.graph.output.append(helper.make_tensor_value_info(at, TensorProto.FLOAT, None))
    with np.errstate(over="ignore", invalid="ignore"):  # of its sigmoid
        return np.abs(by_the_rules(proto, inputs, at))


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("sign", [-40.0, 40.0])
def test_rows_that_are_all_padding_are_finite(precision: Precision, sign: float) -> None:
    model = random_model(heads=(4,), ffn=(16,), hidden=16)
    weights = dict(model.weights)
    for part in ("query", "key"):  # scores of one sign, far from 0
        name = f"layers.0.attention.{part}.bias"
        weights[name] = torch.full_like(weights[name], abs(sign))
    weights[name] = weights[name] * np.sign(sign)
    model = replace(model, weights=weights)
    inputs = dict(random_batch(model, rows=4).inputs())
    inputs["attention_mask"] = inputs["attention_mask"] * np.array([[1], [0], [1], [0]])
    proto = build(model, precision=precision)
    found = by_the_rules(proto, inputs)
    assert np.isfinite(found).all()
    if precision == "fp16":
        assert np.isfinite(opened(proto).run(inputs)).all()


@pytest.mark.parametrize("precision", LOW)
def test_padding_changes_nothing(precision: Precision) -> None:
    model = shaped("bert", "uneven")
    inputs = random_batch(model, rows=4).inputs()
    other = dict(inputs)
    padding = inputs["attention_mask"] == 0
    other["input_ids"] = np.where(padding, 7, inputs["input_ids"])
    proto = build(model, precision=precision)
    a, b = (by_the_rules(proto, x) for x in (inputs, other))
    np.testing.assert_array_equal(a, b)


def test_the_opset_is_raised_for_gelu() -> None:
    model = random_model(heads=(4,))
    versions = {
        (precision, opset): build(model, opset, precision).opset_import[0].version
        for precision in PRECISIONS
        for opset in (17, 20, 22)
    }
    assert versions["fp32", 17] == 17
    assert versions["fp16", 17] == versions["bf16", 17] == LOW_OPSET
    assert versions["fp16", 22] == 22
    kinds = {x.op_type for x in build(model, precision="bf16").graph.node}
    assert "Gelu" in kinds
    assert not kinds & {"Erf", "Pow"}


def test_a_weight_beyond_fp16_is_refused() -> None:
    model = random_model(heads=(4,))
    weights = dict(model.weights)
    weights["layers.0.ffn.up.bias"] = weights["layers.0.ffn.up.bias"] + 70000
    model = replace(model, weights=weights)
    with pytest.raises(
        VerifyError, match=r"up\.bias' holds values up to 7e\+04, fp16 ends at"
    ):
        build(model, precision="fp16")
    verify(build(model, precision="bf16"))


@pytest.mark.parametrize("precision", LOW)
def test_the_same_model_gives_the_same_bytes(precision: Precision) -> None:
    first, second = (
        build(random_model("roberta", heads=(4, 3)), precision=precision) for _ in range(2)
    )
    assert first.SerializeToString() == second.SerializeToString()


def test_portable_changes_only_the_running_sum_of_fp32() -> None:
    model = shaped("roberta", "uneven")
    plain, portable = build(model), build(model, portable=True)
    assert not_listed(plain) == ["CumSum of INT64"]
    left = [x for x in portable.graph.node if x not in list(plain.graph.node)]
    assert [x.op_type for x in left] == ["Cast", "CumSum", "Cast"]
    inputs = random_batch(model).inputs()
    np.testing.assert_array_equal(opened(plain).run(inputs), opened(portable).run(inputs))
    for family in ("bert", "distilbert", "electra"):
        same = shaped(family, "uneven")
        assert (
            build(same).SerializeToString() == build(same, portable=True).SerializeToString()
        )


def test_the_list_check_sees_what_is_not_listed() -> None:
    proto = build(random_model("bert", heads=(4,)), precision="fp16")
    assert LIST["operators"]["CumSum"]["types"] == ["FP32", "FP16", "BF16"]
    proto.graph.node[0].op_type, proto.graph.node[0].domain = "Attention", "com.microsoft"
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert not_listed(proto) == ["a domain of its own", "com.microsoft Attention"]
    ints, found = (
        helper.make_tensor_value_info(x, TensorProto.INT32, [2, 2]) for x in ("x", "y")
    )
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["y"]),
        helper.make_node("NonZero", ["x"], ["unused"]),
    ]
    odd = helper.make_model(
        helper.make_graph(nodes, "g", [ints], [found]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    assert not_listed(odd) == ["MatMul of INT32", "NonZero"]
