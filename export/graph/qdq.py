"""int8 as pairs of QuantizeLinear and DequantizeLinear (Q/DQ), the form that TensorRT reads.

Only matrix products with constant weights run in int8. Weights have one scale for each output
column. An activation has one scale, from its largest absolute value on the calibration rows.
All zero points are 0. The residual stream, LayerNorm, biases and the products in attention
stay floats.

Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/inference-library/work-quantized-types.html
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from prumux.optimizer.base.errors import MissingError, UsageError

from .fusion import quiet

MATMUL = ".matmul"
Inputs = Mapping[str, NDArray[Any]]


def quantize(
    proto: onnx.ModelProto, rows: Sequence[Inputs], keep: Collection[str] = ()
) -> onnx.ModelProto:
    """Put Q/DQ pairs around every matrix product with constant weights.

    Args:
        proto: a graph written by `build`, fp32 or fp16. It is not changed.
        rows: calibration batches of the user's data: int64 [B, T] by input name.
        keep: linear maps that stay floats. Each is named by its node
            (`layers.0.ffn.up.matmul`) or by its weights (`layers.0.ffn.up`).

    Returns:
        A new graph. The same graph and rows give the same bytes.

    Raises:
        UsageError: there are no rows, or `keep` names a map that the graph does not have.
        MissingError: ONNX Runtime is not installed.
    """
    quantisable = products(proto)
    left_out = {x if x.endswith(MATMUL) else f"{x}{MATMUL}" for x in keep}
    unknown = sorted(left_out - set(quantisable))
    if unknown:
        raise UsageError(
            f"there is no '{unknown[0].removesuffix(MATMUL)}' to keep out of int8\n"
            f"such as {quantisable[0].removesuffix(MATMUL)} would be"
        )
    if not rows:
        raise UsageError(
            "int8 needs rows of your data to find the ranges of values: give some"
        )
    chosen = [name for name in quantisable if name not in left_out]
    if not chosen:
        found = onnx.ModelProto()
        found.CopyFrom(proto)
        return found
    found = _quantized(proto, rows, chosen)
    _floats_elsewhere(found)
    # The tool overwrites the producer and the metadata: restore them.
    found.producer_name, found.producer_version = proto.producer_name, ""
    del found.metadata_props[:]
    found.metadata_props.extend(proto.metadata_props)
    found.doc_string = proto.doc_string
    return found


def products(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the matrix products with constant weights, in graph order."""
    constants = {x.name for x in proto.graph.initializer}
    return tuple(
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul" and node.input[1] in constants
    )


def quantized(proto: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the matrix products that run in int8: both inputs are dequantised values."""
    made_by = {node.output[0]: node.op_type for node in proto.graph.node}
    return tuple(
        node.name
        for node in proto.graph.node
        if node.op_type == "MatMul"
        and all(made_by.get(x) == "DequantizeLinear" for x in node.input)
    )


class _Rows:
    """A calibration data reader for ONNX Runtime's quantisation tool."""

    def __init__(self, rows: Sequence[Inputs]) -> None:
        self._left: Iterator[Inputs] = iter(rows)

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """The next batch; None after the last batch."""
        batch = next(self._left, None)
        return None if batch is None else dict(batch)


def _quantized(
    proto: onnx.ModelProto, rows: Sequence[Inputs], chosen: list[str]
) -> onnx.ModelProto:
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise MissingError(
            "int8 needs ONNX Runtime for its ranges: pip install 'prumux[cpu]'"
        ) from error
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    with tempfile.TemporaryDirectory() as folder, quiet():
        written = Path(folder) / "int8.onnx"
        quantize_static(
            copy,
            written,
            _Rows(rows),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=chosen,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "MatMulConstBOnly": True,
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
            },
        )
        return onnx.load(written)


def _floats_elsewhere(proto: onnx.ModelProto) -> None:
    """Connect all nodes except the products to float values, not to dequantised values.

    The tool connects every reader of a quantised value to its dequantised form. This includes
    the residual stream.
    """
    made_by = {node.output[0]: node for node in proto.graph.node}
    for node in proto.graph.node:
        if node.op_type in ("MatMul", "QuantizeLinear", "DequantizeLinear"):
            continue
        for i, name in enumerate(node.input):
            after = made_by.get(name)
            if after is not None and after.op_type == "DequantizeLinear":
                before = made_by.get(after.input[0])
                if before is not None:
                    node.input[i] = before.input[0]
