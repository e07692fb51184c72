"""int8 for ONNX Runtime on CPUs: weights per channel, activations quantised dynamically.

At run time each activation is quantised with the range that it has in the batch, so there is
no calibration. Weights are stored as int8; they use 7 of the bits on processors whose sums of
8-bit products saturate at 16 bits (x86 without VNNI). Only products with constant weights are
lowered, and only if they are large enough for ONNX Runtime's integer kernel to be faster.

Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path

import onnx
import onnx.helper

from prumux.optimizer.base.environment import int8_saturates
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context

from .fusion import quiet
from .graph import PRECISION, build
from .graph_file import FILE, is_large, save

LEAST_UNITS = 16
"""A product with fewer inputs or outputs stays in float32. Of the limits 16, 32, 48, 64, 100,
160 and 200 this was the fastest on a pruned MiniLM; on the dense one none was faster."""
LEAST_HIDDEN = 64
"""Models with fewer hidden dimensions gain nothing from int8."""
TOLERANCE_NATS = 0.005
"""KL divergence per row that int8 may cause in the given model."""


def lower(proto: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The graph with int8 weights and dynamically quantised activations.

    Args:
        proto: a float32 graph that `graph.build` wrote. It is not changed.
        keep: linear maps that stay in float32, such as `layers.0.ffn.down`.

    Raises:
        MissingError: ONNX Runtime is not installed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [x for x in worth_lowering(proto) if x.removesuffix(".matmul") not in keep]
    if not nodes:
        return proto
    with tempfile.TemporaryDirectory() as folder, quiet():
        place = Path(folder) / "float"
        save(proto, place)
        made = Path(folder) / "int8.onnx"
        quantize_dynamic(
            place / FILE,
            made,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=int8_saturates(),
            nodes_to_quantize=nodes,
            use_external_data_format=is_large(proto),
        )
        found = onnx.load(made)
    # The tool adds every shape it infers. With shapes ONNX Runtime would fuse residual sums
    # and LayerNorms, and its kernel for that takes several times as long.
    del found.graph.value_info[:]
    metadata = {x.key: x.value for x in proto.metadata_props}
    onnx.helper.set_model_props(found, {**metadata, PRECISION: "int8"})
    return found


def worth_lowering(proto: onnx.ModelProto) -> list[str]:
    """Names of the products with constant weights that are large enough, in graph order."""
    shapes = {x.name: x.dims for x in proto.graph.initializer}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and min(shapes.get(node.input[1], (0,))) >= LEAST_UNITS
    ]


def sensitive(model: Model, opset: int, ctx: Context) -> tuple[str, ...]:
    """The fewest linear maps to keep in float32 so that int8 hardly changes the predictions.

    The most sensitive maps are kept until the estimated divergence of the others is at most
    `TOLERANCE_NATS`; see `sensitivity`.
    """
    from .sensitivity import divergence, worst

    names = [x.removesuffix(".matmul") for x in worth_lowering(build(model, opset))]
    return worst(divergence(model, names, ctx), most=TOLERANCE_NATS)


def check_names(keep: Collection[str], proto: onnx.ModelProto) -> None:
    """Check that the graph has linear maps of these names that int8 would lower.

    Raises:
        UsageError: it lacks one; the message names two that it has.
    """
    check_known(keep, [x.removesuffix(".matmul") for x in worth_lowering(proto)])


def check_known(keep: Collection[str], names: Sequence[str]) -> None:
    """Check that all of `keep` are among `names`.

    Raises:
        UsageError: one is not; the message names two of `names`.
    """
    for name in keep:
        if name not in names:
            raise UsageError(
                f"keep: the model has no '{name}' that int8 would lower\n"
                f"names are such as {', '.join(names[:2])}"
            )


def lowered_names(proto: onnx.ModelProto) -> list[str]:
    """Names of the int8 products, as they were before lowering."""
    suffix = "_quant"
    return [
        node.name.removesuffix(suffix)
        for node in proto.graph.node
        if node.op_type == "MatMulInteger"
    ]
