"""int8 for ONNX Runtime on CPUs: weights per channel, activations as they come.

Activations are quantised at run time with the range that they have in the batch, so nothing is
calibrated, and the weights are int8 in the file; 7 bits of it are used where this processor's
products would overflow otherwise. Only products with weights are lowered, and only where ONNX
Runtime's integer kernel can win (`worth_lowering`).
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx.helper

from prumux.optimizer.base.environment import int8_saturates
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.context import Context

from .graph import PRECISION, build
from .graph_file import FILE, is_large, save

LEAST_UNITS = 16
"""A product with fewer inputs or outputs stays in float32. Lowering all from here on was the
fastest of 16, 32, 48, 64, 100, 160 and 200 on a pruned MiniLM, and no slower on the dense."""
LEAST_HIDDEN = 64
"""Models with fewer hidden dimensions are as fast in float32."""
TOLERANCE_NATS = 0.005
"""Divergence a row that int8 may cause in the given model."""


def lower(proto: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """The graph with int8 weights and run-time quantised activations.

    Args:
        proto: a float32 graph as `graph.build` writes it.
        keep: names of linear maps, such as `layers.0.ffn.down`, that stay in float32.

    Raises:
        MissingError: ONNX Runtime is not installed.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    nodes = [x for x in worth_lowering(proto) if x.removesuffix(".matmul") not in keep]
    if not nodes:
        return proto
    with tempfile.TemporaryDirectory() as folder, _quietly():
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
    # The tool writes down every shape it infers. With these ONNX Runtime would join residual
    # sums and LayerNorms, and its joint kernel for that is several times as slow.
    del found.graph.value_info[:]
    told = {x.key: x.value for x in proto.metadata_props}
    onnx.helper.set_model_props(found, {**told, PRECISION: "int8"})
    return found


def worth_lowering(proto: onnx.ModelProto) -> list[str]:
    """Names of the products with weights that are large enough, in the order of the graph."""
    shapes = {x.name: x.dims for x in proto.graph.initializer}
    return [
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and min(shapes.get(node.input[1], (0,))) >= LEAST_UNITS
    ]


def sensitive(model: Model, opset: int, ctx: Context) -> tuple[str, ...]:
    """Linear maps to keep in float32: the fewest without which int8 hardly changes anything.

    By their estimated divergence, see `sensitivity`, until at most `TOLERANCE_NATS` remain.
    """
    from .sensitivity import divergence, worst

    names = [x.removesuffix(".matmul") for x in worth_lowering(build(model, opset))]
    return worst(divergence(model, names, ctx), most=TOLERANCE_NATS)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the tool's advice to fold constants first: our graphs have none to fold."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def check_names(keep: Collection[str], proto: onnx.ModelProto) -> None:
    """See that linear maps of these names are there.

    Raises:
        UsageError: one is not; names one that is.
    """
    check_known(keep, [x.removesuffix(".matmul") for x in worth_lowering(proto)])


def check_known(keep: Collection[str], names: Sequence[str]) -> None:
    """See that all of `keep` are among `names`.

    Raises:
        UsageError: one is not; names one that is.
    """
    for name in keep:
        if name not in names:
            raise UsageError(
                f"keep: the model has no '{name}' that int8 would lower\n"
                f"names are such as {', '.join(names[:2])}"
            )


def lowered_names(proto: onnx.ModelProto) -> list[str]:
    """Names that the products had before they were lowered."""
    suffix = "_quant"
    return [
        node.name.removesuffix(suffix)
        for node in proto.graph.node
        if node.op_type == "MatMulInteger"
    ]
