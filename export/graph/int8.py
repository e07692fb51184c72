"""int8 for ONNX Runtime on CPUs: weights per channel, dynamically quantised activations.

At run time each activation is quantised with its range in the batch, so there is no
calibration. Weights are stored as int8. On processors whose sums of 8-bit products saturate at
16 bits (x86 without VNNI), they use only 7 bits. Only products with constant weights are
quantised, and only if they are large enough for ONNX Runtime's integer kernel to be faster.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import onnx
import onnx.helper
from numpy.typing import NDArray
from onnx import numpy_helper

from prumux.optimizer.base.environment import int8_saturates
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.memory import release_memory
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context

from .graph import PRECISION, build

LEAST_UNITS = 16
"""A product with fewer inputs or outputs than this stays in float32.

Of the limits 16, 32, 48, 64, 100, 160 and 200, 16 was the fastest on a pruned MiniLM. On the
unpruned MiniLM no other limit was faster."""
LEAST_HIDDEN = 64
"""Models with fewer hidden dimensions gain nothing from int8."""
TOLERANCE_NATS = 0.005
"""Largest KL divergence per row that int8 may cause in the given model."""


def lower(proto: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Quantise a graph: int8 weights and dynamically quantised activations.

    Each product y = x W becomes, with one scale s_j for each column of W,

        W_ij ~ s_j Q_ij,   s_j = max_i |W_ij| / 127 (or 64 with 7 bits)
        x ~ s_x (X - z_x), by DynamicQuantizeLinear
        y_j = s_x s_j sum_i (X_i - z_x) Q_ij, by MatMulInteger

    ONNX Runtime's `quantize_dynamic` gives the same bytes; a test compares both. This function
    is used instead, because a search quantises many graphs, and `quantize_dynamic` takes half
    a millisecond for each of 20,000 columns.

    Args:
        proto: a float32 graph that `graph.build` wrote. It is not changed.
        keep: linear maps that stay in float32, such as `layers.0.ffn.down`.
    """
    chosen = {x for x in worth_lowering(proto) if x.removesuffix(".matmul") not in keep}
    if not chosen:
        return proto
    weights = {x.name: x for x in proto.graph.initializer}
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, onnx.TensorProto] = {}
    quantised: set[str] = set()
    for node in proto.graph.node:
        if node.name not in chosen:
            nodes.append(node)
            continue
        x, weight = node.input
        if x not in quantised:
            quantised.add(x)
            nodes.append(_dynamic_quantize(x))
        if f"{weight}_quantized" not in constants:
            made = _quantized_columns(weight, numpy_helper.to_array(weights[weight]))
            constants |= {tensor.name: tensor for tensor in made}
        nodes += _integer_product(node)
    read = {name for node in nodes for name in node.input}
    lowered = onnx.ModelProto()
    lowered.CopyFrom(proto)
    lowered.ClearField("graph")
    kept = [x for x in proto.graph.initializer if x.name in read]
    graph = onnx.helper.make_graph(
        nodes,
        proto.graph.name,
        proto.graph.input,
        proto.graph.output,
        [*kept, *constants.values()],
    )
    lowered.graph.CopyFrom(graph)
    metadata = {x.key: x.value for x in proto.metadata_props}
    onnx.helper.set_model_props(lowered, {**metadata, PRECISION: "int8"})
    return lowered


def _dynamic_quantize(x: str) -> onnx.NodeProto:
    """Node that quantises a value to uint8, by the scale and zero point of its range."""
    outputs = [f"{x}_quantized", f"{x}_scale", f"{x}_zero_point"]
    return onnx.helper.make_node(
        "DynamicQuantizeLinear", [x], outputs, name=f"{x}_QuantizeLinear"
    )


def _quantized_columns(name: str, weight: NDArray[np.float32]) -> list[onnx.TensorProto]:
    """Quantise a weight [in, out] to int8, with a scale and a zero point for each column."""
    largest = 64 if int8_saturates() else 127
    spread = 2 * np.abs(weight).max(0).astype(np.float64)
    scale = (spread / (2 * largest)).astype(np.float32)
    scale[scale < np.finfo(np.float32).tiny] = 1.0
    found = np.clip(np.round(weight / scale), -largest, largest).astype(np.int8)
    values = {"quantized": found, "scale": scale, "zero_point": np.zeros(len(scale), np.int8)}
    return [numpy_helper.from_array(x, f"{name}_{kind}") for kind, x in values.items()]


def _integer_product(node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """The nodes that replace a product: int32 sums, a cast, and a product with both scales."""
    x, weight = node.input
    name, sums = f"{node.name}_quant", f"{node.output[0]}_output_quantized"
    inputs = [f"{y}_{kind}" for kind in ("quantized", "zero_point") for y in (x, weight)]
    cast, scales = f"{sums}_cast_output", f"{name}_scales_mul:0"
    make = onnx.helper.make_node
    return [
        make("MatMulInteger", inputs, [sums], name=name),
        make("Cast", [sums], [cast], name=f"{sums}_cast", to=onnx.TensorProto.FLOAT),
        make("Mul", [f"{x}_scale", f"{weight}_scale"], [scales], name=f"{name}_scales_mul"),
        make("Mul", [cast, scales], [node.output[0]], name=f"{name}_output_scale_mul"),
    ]


def worth_lowering(proto: onnx.ModelProto) -> list[str]:
    """Names of the products with constant weights that are large enough, in graph order."""
    shapes = {x.name: x.dims for x in proto.graph.initializer}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and min(shapes.get(node.input[1], (0,))) >= LEAST_UNITS
    ]


def sensitive(model: Model, opset: int, ctx: Context) -> tuple[str, ...]:
    """Choose the linear maps to keep in float32, so that int8 hardly changes the predictions.

    The most sensitive maps are kept, as few as possible: the estimated divergence caused by
    the other maps must be at most `TOLERANCE_NATS`. See `sensitivity`.
    """
    from .sensitivity import divergence, worst

    names = [x.removesuffix(".matmul") for x in worth_lowering(build(model, opset))]
    nats = divergence(model, names, ctx)
    release_memory()  # the outputs of all maps, and their gradients
    return worst(nats, most=TOLERANCE_NATS)


def check_names(keep: Collection[str], proto: onnx.ModelProto) -> None:
    """Check that the graph has linear maps of these names, and that int8 would convert them.

    Raises:
        UsageError: the graph lacks a map; the message names two maps that it has.
    """
    check_known(keep, [x.removesuffix(".matmul") for x in worth_lowering(proto)])


def check_known(keep: Collection[str], names: Sequence[str]) -> None:
    """Check that all of `keep` are among `names`.

    Raises:
        UsageError: a name is missing; the message has two of `names`.
    """
    for name in keep:
        if name not in names:
            raise UsageError(
                f"keep: the model has no '{name}' that int8 would lower\n"
                f"names are such as {', '.join(names[:2])}"
            )


def lowered_names(proto: onnx.ModelProto) -> list[str]:
    """Names of the int8 products: the names of the float32 products that they replaced."""
    suffix = "_quant"
    return [
        node.name.removesuffix(suffix)
        for node in proto.graph.node
        if node.op_type == "MatMulInteger"
    ]
