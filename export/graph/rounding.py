"""A low-precision graph as a float32 graph that rounds every value to its type.

ONNX Runtime has no bf16 kernels for CPUs, and runs fp16 graphs there partly in float32. This
graph gives the answers of the typed graph by the rules of ONNX: products are summed in
float32, as on a GPU, and each node's result is rounded to fp16 or bf16.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOW = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
MOVES = ("Reshape", "Transpose", "Gather", "Unsqueeze", "Slice", "Concat", "Identity")
"""Operators that compute nothing: their results need no rounding."""


def rounding(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A float32 graph with the answers of a typed graph; graphs without low types stay equal.

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
    """Type of every value and constant that is fp16 or bf16."""
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
    """The node in float32, and two casts for each result that it computes."""
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
