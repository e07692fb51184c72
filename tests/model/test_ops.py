"""Operators one by one: torch, ONNX Runtime and masks give the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from prumux.export.graph.builder import GraphBuilder, Precision
from prumux.export.graph.onnx_ops import OnnxOps
from prumux.export.graph.ragged import RaggedOps
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.model.ops import Disentangled, Ops, Relative, Rotary, Value
from prumux.optimizer.model.sizes import Branch, Encoder, Pooling
from prumux.optimizer.model.torch_ops import Factors, TorchOps
from tests.helpers.factory import random_model

ROWS, LENGTH = 3, 9
ATTENTION = Branch(0, "attention")
LOW: tuple[Precision, ...] = ("fp16",)
TOLERANCE: dict[Precision, float] = {"fp32": 1e-5, "fp16": 2e-2}


@dataclass
class Case:
    """One operator on a random residual stream."""

    run: Any
    """Takes `Ops` and the stream."""
    pooling: Pooling = "first"
    narrow: bool = False
    """Gives the first position alone, or one state a row."""


def attend(ops: Ops, x: Value, narrow: bool = False, **options: Any) -> Value:
    at = ATTENTION.name
    rows = ops.first(x) if narrow else x
    parts = ops.linear(f"{at}.query", rows), ops.linear(f"{at}.key", x)
    return ops.attention(ATTENTION, *parts, ops.linear(f"{at}.value", x), **options)


def buckets(positions: int) -> Any:
    return np.clip(np.arange(1 - positions, positions), -3, 3) + 3


RELATIVE = Relative("layers.0.attention.relative", buckets(40))


def disentangled(**changes: Any) -> Disentangled:
    """Seven vectors for the distances from -3 to 3 on, and maps of layer 0."""
    maps = {"key": "layers.0.attention.key", "query": "layers.0.attention.query"}
    given = {"norm": "layers.0.ffn.norm", "rows": np.array([5, 0, 4, 1, 6, 2, 3])}
    return Disentangled(**{"table": "vectors", **given, **maps, **changes})


CASES = {
    "linear": Case(lambda o, x: o.linear("layers.0.ffn.up", x)),
    "linear without bias": Case(lambda o, x: o.linear("layers.1.ffn.up", x)),
    "norm": Case(lambda o, x: o.norm("layers.0.ffn.norm", x)),
    "norm without shift": Case(lambda o, x: o.norm("layers.1.ffn.norm", x)),
    "rms": Case(lambda o, x: o.norm("layers.0.ffn.norm", x, centred=False)),
    "rms without shift": Case(lambda o, x: o.norm("layers.1.ffn.norm", x, centred=False)),
    "multiply": Case(lambda o, x: o.multiply(x, o.linear("layers.0.attention.output", x))),
    "write": Case(lambda o, x: o.write(Branch(0, "ffn"), o.linear("layers.0.ffn.up", x), x)),
    "attention": Case(attend),
    "narrow": Case(lambda o, x: attend(o, x, narrow=True), narrow=True),
    "scale": Case(lambda o, x: attend(o, x, scale=1.0)),
    "rotary": Case(lambda o, x: attend(o, x, rotary=Rotary(100.0))),
    "rotary interleaved": Case(
        lambda o, x: attend(o, x, rotary=Rotary(100.0, interleaved=True))
    ),
    "rotary narrow": Case(
        lambda o, x: attend(o, x, narrow=True, rotary=Rotary(100.0)), narrow=True
    ),
    "window": Case(lambda o, x: attend(o, x, window=2)),
    "window narrow": Case(lambda o, x: attend(o, x, narrow=True, window=2), narrow=True),
    "relative": Case(lambda o, x: attend(o, x, relative=RELATIVE)),
    "relative narrow": Case(
        lambda o, x: attend(o, x, narrow=True, relative=RELATIVE), narrow=True
    ),
    "disentangled": Case(lambda o, x: attend(o, x, disentangled=disentangled())),
    "disentangled narrow": Case(
        lambda o, x: attend(o, x, narrow=True, disentangled=disentangled()), narrow=True
    ),
    "disentangled scaled": Case(
        lambda o, x: attend(o, x, disentangled=disentangled(norm=None), scale=0.3)
    ),
    "disentangled keys": Case(
        lambda o, x: attend(o, x, disentangled=disentangled(query=None))
    ),
    "disentangled queries": Case(
        lambda o, x: attend(o, x, narrow=True, disentangled=disentangled(key=None)),
        narrow=True,
    ),
    "all at once": Case(
        lambda o, x: attend(
            o,
            x,
            relative=RELATIVE,
            disentangled=disentangled(),
            window=3,
            rotary=Rotary(50.0),
            scale=0.3,
        )
    ),
    "first": Case(lambda o, x: o.first(x), narrow=True),
    "pool first": Case(lambda o, x: o.pool(x), narrow=True),
    "pool mean": Case(lambda o, x: o.pool(x), "mean", narrow=True),
    "pool all": Case(lambda o, x: o.pool(x), "all"),
    **{
        kind: Case(lambda o, x, kind=kind: o.activation(kind, o.linear("layers.0.ffn.up", x)))
        for kind in ("gelu", "gelu_tanh", "quick_gelu", "relu", "silu", "tanh")
    },
}


class Host(nn.Module):
    """Weights under their names."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.held = weights

    def get_parameter(self, target: str) -> nn.Parameter:
        return nn.Parameter(self.held[target], requires_grad=False)


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    """Of a tiny model: two heads of four dimensions; layer 1 has no biases."""
    found = dict(random_model(heads=(2, 2), ffn=(6, 8), hidden=8).weights)
    found["layers.0.attention.relative.weight"] = torch.randn(
        7, 2, generator=torch.Generator().manual_seed(1)
    )
    found["vectors.weight"] = torch.randn(7, 8, generator=torch.Generator().manual_seed(3))
    without = ("layers.1.ffn.up.bias", "layers.1.ffn.norm.bias")
    return {k: v for k, v in found.items() if k not in without}


def encoder(pooling: Pooling) -> Encoder:
    return replace(random_model(heads=(2, 2), ffn=(6, 8), hidden=8).encoder, pooling=pooling)


def stream() -> tuple[Tensor, Tensor]:
    """States [B, T, D] and a mask with a row of one token."""
    x = torch.randn(ROWS, LENGTH, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(ROWS, LENGTH, dtype=torch.int64)
    mask[1, 1:], mask[2, 6:] = 0, 0
    return x, mask


def in_torch(case: Case, weights: dict[str, Tensor], hidden: Tensor | None = None) -> Tensor:
    x, mask = stream()
    ops = TorchOps(encoder(case.pooling), Host(weights), mask, Factors((), (), hidden))
    ops.table = {k: v for k, v in ops.table.items() if k in weights}
    found: Tensor = case.run(ops, x)
    return found


def in_onnx(
    case: Case, weights: dict[str, Tensor], precision: Precision, ragged: bool = False
) -> Tensor:
    x, mask = stream()
    build = GraphBuilder(weights, precision)
    ops = (RaggedOps if ragged else OnnxOps)(encoder(case.pooling), build)
    value = build.op("Cast", "x", "given", to=build.element)
    if isinstance(ops, RaggedOps):
        value = ops._packed("tokens", value, 8)
    value = ops._use(case.run(ops, value))
    if isinstance(ops, RaggedOps) and not case.narrow:
        value = ops._padded(value)
    build.op("Cast", "found", value, to=TensorProto.FLOAT)
    graph = helper.make_graph(
        build.nodes,
        "one",
        [
            helper.make_tensor_value_info("given", TensorProto.FLOAT, ("B", "T", 8)),
            helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ("B", "T")),
        ],
        [helper.make_tensor_value_info("found", TensorProto.FLOAT, None)],
        build.constants,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    proto.ir_version = 9
    session: Any = OrtEngine(proto.SerializeToString(), 1)._session
    (found,) = session.run(None, {"given": x.numpy(), "attention_mask": mask.numpy()})
    return torch.as_tensor(found)


def real(found: Tensor) -> Tensor:
    """Only real positions count where all are there."""
    _, mask = stream()
    return found[mask > 0] if found.shape[:2] == mask.shape else found


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_torch_and_onnx_agree(
    name: str, precision: Literal["fp32", "fp16"], weights: dict[str, Tensor]
) -> None:
    wanted = in_torch(CASES[name], weights)
    found = in_onnx(CASES[name], weights, precision)
    assert found.shape == wanted.shape
    assert float(wanted.std()) > 0.05
    assert float((real(found) - real(wanted)).abs().max()) < TOLERANCE[precision]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_the_ragged_operator_gives_the_same(
    name: str, precision: Literal["fp32", "fp16"], weights: dict[str, Tensor]
) -> None:
    wanted = in_onnx(CASES[name], weights, precision)
    found = in_onnx(CASES[name], weights, precision, ragged=True)
    assert found.shape == wanted.shape
    tolerance = 1e-5 if precision == "fp32" else 4e-3
    assert float((real(found) - real(wanted)).abs().max()) < tolerance


@pytest.mark.parametrize("name", [x for x in CASES if x.startswith(("norm", "rms"))])
def test_a_masked_norm_is_that_of_what_is_left(name: str, weights: dict[str, Tensor]) -> None:
    kept = torch.tensor([1, 0, 1, 1, 0, 1, 1, 1]).bool()
    found = in_torch(CASES[name], weights, kept.float())
    assert float(found[..., ~kept].abs().max()) == 0
    x, mask = stream()
    small = {k: v[kept] for k, v in weights.items() if ".ffn.norm." in k}
    sizes = replace(encoder("first"), hidden=6, embedding=6)
    ops = TorchOps(sizes, Host(small), mask, Factors((), (), None))
    ops.table = {k: v for k, v in ops.table.items() if k in small}
    wanted = CASES[name].run(ops, x[..., kept])
    assert float((found[..., kept] - wanted).abs().max()) < 1e-6


def test_rms_is_what_torch_says(weights: dict[str, Tensor]) -> None:
    x, _ = stream()
    weight = weights["layers.1.ffn.norm.weight"]
    wanted = nn.functional.rms_norm(x, (8,), weight, encoder("first").norm_eps)
    found = in_torch(CASES["rms without shift"], weights)
    assert float((found - wanted).abs().max()) < 1e-6


def test_rotating_both_depends_on_distance_alone(weights: dict[str, Tensor]) -> None:
    """Scores of two positions do not change when both are moved by the same number."""
    _, mask = stream()
    ops = TorchOps(encoder("first"), Host(weights), mask, Factors((), (), None))
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(4, generator=generator).expand(1, 1, LENGTH, 4) for _ in "qk")
    for interleaved in (False, True):
        rotary = Rotary(10.0, interleaved)
        scores = (ops._rotated(rotary, q) @ ops._rotated(rotary, k).transpose(-1, -2))[0, 0]
        for distance in range(-3, 4):
            along = torch.diagonal(scores, distance)
            assert float((along - along[0]).abs().max()) < 1e-5


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("terms", [("key", "query"), ("key",), ("query",)])
def test_disentangled_scores_are_sums_of_three_products(
    terms: tuple[str, ...], scale: float | None, weights: dict[str, Tensor]
) -> None:
    """Score by score, for every distance, as the definition says."""
    x, mask = stream()
    of = disentangled(**{y: None for y in ("key", "query") if y not in terms})
    scale_of, shift = (weights[f"layers.0.ffn.norm.{y}"] for y in ("weight", "bias"))
    eps = encoder("first").norm_eps
    vectors = nn.functional.layer_norm(weights["vectors.weight"], (8,), scale_of, shift, eps)

    def mapped(part: str, y: Tensor) -> Tensor:
        at = f"layers.0.attention.{part}"
        z = nn.functional.linear(y, weights[f"{at}.weight"], weights[f"{at}.bias"])
        return z.reshape(*z.shape[:-1], 2, 4)  # heads, dimensions

    q, k, v = (mapped(y, x) for y in ("query", "key", "value"))
    keys, queries = mapped("key", vectors), mapped("query", vectors)
    scores = torch.full((ROWS, 2, LENGTH, LENGTH), -torch.inf)
    for t in range(LENGTH):
        for s in range(LENGTH):
            row = of.rows[max(-3, min(3, s - t)) + 3]
            total = (q[:, t] * k[:, s]).sum(-1)
            if "key" in terms:
                total = total + (q[:, t] * keys[row]).sum(-1)
            if "query" in terms:
                total = total + (queries[row] * k[:, s]).sum(-1)
            real = mask[:, s, None] > 0
            scores[:, :, t, s] = torch.where(real, total * (scale or 0.5), -torch.inf)
    share = torch.softmax(scores, -1)
    wanted = torch.einsum("bhts,bshk->bthk", share, v).flatten(2)
    case = Case(lambda o, y: attend(o, y, disentangled=of, scale=scale))
    assert float((in_torch(case, weights) - wanted).abs().max()) < 1e-5
