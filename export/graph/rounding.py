"""Convert a low-precision graph to a float32 graph that rounds every value to its type.

ONNX Runtime has no bf16 kernels for CPUs, and runs fp16 graphs on CPUs partly in float32. The
converted graph gives the answers of the typed graph by the rules of ONNX. Products are summed
in float32, as on a GPU. The result of each node is rounded to fp16 or bf16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
MOVES = ("Reshape", "Transpose", "Gather", "Unsqueeze", "Slice", "Concat", "Identity")
"""Operators that only move values. Their results need no rounding."""


def rounding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Convert a typed graph to float32 with the same answers, if it has fp16 or bf16 values.

    Args:
        proto: a typed graph that has passed `graph_file.verify`.
    """
    if not any(x.data_type in LOW for x in proto.graph.initializer):
        return proto
    types = _low_types(proto)
    found = onnx.ModelProto()
    found.CopyFrom(proto)
    graph = found.graph
    del graph.value_info[:], graph.node[:], graph.initializer[:]
    graph.initializer.extend(_in_float32(x) for x in proto.graph.initializer)
    for node in proto.graph.node:
        graph.node.extend(_rounded(node, types))
    return found


def _low_types(proto: onnx.ModelProto) -> dict[str, int]:
    """Types of all fp16 and bf16 values and constants, by name."""
    graph = onnx.shape_inference.infer_shapes(proto).graph
    types = {x.name: x.data_type for x in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        types[value.name] = value.type.tensor_type.elem_type
    return {name: kind for name, kind in types.items() if kind in LOW}


def _in_float32(constant: onnx.TensorProto) -> onnx.TensorProto:
    if constant.data_type not in LOW:
        return constant
    values = numpy_helper.to_array(constant).astype(np.float32)
    return numpy_helper.from_array(values, constant.name)


def _rounded(node: onnx.NodeProto, types: dict[str, int]) -> list[onnx.NodeProto]:
    """The node in float32, and two casts for each of its computed results."""
    copy, casts = onnx.NodeProto(), list[onnx.NodeProto]()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if node.op_type == "Cast" and attribute.name == "to" and attribute.i in LOW:
            attribute.i = TensorProto.FLOAT
    if node.op_type in MOVES:
        return [copy]
    for i, name in enumerate(node.output):
        if name in types:
            copy.output[i] = exact = f"{name}.exact"
            low, back = f"{name}.low", TensorProto.FLOAT
            casts.append(helper.make_node("Cast", [exact], [low], low, to=types[name]))
            casts.append(helper.make_node("Cast", [low], [name], f"{name}.back", to=back))
    return [copy, *casts]
