"""Is a graph within what TensorRT's ONNX parser documents? The rows we need are in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper, numpy_helper

LIST: dict[str, Any] = json.loads(
    Path(__file__).with_name("tensorrt_operators.json").read_text(encoding="utf-8")
)
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "FP32",
    TensorProto.FLOAT16: "FP16",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT64: "INT64",
    TensorProto.INT32: "INT32",
    TensorProto.INT8: "INT8",
    TensorProto.BOOL: "BOOL",
}
AT_BUILD = {"CumSum": (1,), "Unsqueeze": (1,)}
"""Inputs that must be known when the engine is built."""


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    """The element type of every input, constant and value."""
    inferred = onnx.shape_inference.infer_shapes(
        proto, check_type=True, strict_mode=True, data_prop=True
    )
    graph = inferred.graph
    found = {x.name: x.data_type for x in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def not_listed(proto: onnx.ModelProto) -> list[str]:
    """What the list does not hold: operators, types, opset, restrictions."""
    version = proto.opset_import[0].version
    low, high = LIST["opsets"]
    found = [] if low <= version <= high else [f"opset {version}"]
    if [x.domain for x in proto.opset_import] != [""]:
        found.append("a domain of its own")
    types = types_of(proto)
    constants = {x.name: numpy_helper.to_array(x) for x in proto.graph.initializer}
    for node in proto.graph.node:
        row = LIST["operators"].get(node.op_type)
        if row is None or node.domain:
            found.append(f"{node.domain} {node.op_type}".strip())
            continue
        used = {types[x] for x in _of_its_type(node, version) if x in types}
        if node.op_type == "Cast":
            used.add(next(helper.get_attribute_value(x) for x in node.attribute))
        found += [
            f"{node.op_type} of {NAMES[x]}" for x in used if NAMES[x] not in row["types"]
        ]
        quantises = node.op_type in ("QuantizeLinear", "DequantizeLinear")
        if quantises and len(node.input) > 2 and constants[node.input[2]].any():
            found.append(f"{node.op_type} with a zero point")
        if any(node.input[i] not in constants for i in AT_BUILD.get(node.op_type, ())):
            found.append(f"{node.op_type} with what is not known at build time")
        if node.op_type == "LayerNormalization" and len(node.output) > 1:
            found.append("LayerNormalization with more than one output")
    return sorted(set(found))


def _of_its_type(node: onnx.NodeProto, version: int) -> list[str]:
    """The inputs whose type is the one that the operator is said to support."""
    schema = onnx.defs.get_schema(node.op_type, version, node.domain)
    kinds = [x.type_str for x in schema.inputs]
    kinds += [kinds[-1]] * (len(node.input) - len(kinds))  # of as many inputs as one likes
    return [
        name
        for name, kind in zip(node.input, kinds, strict=False)
        if kind == kinds[0] and name
    ]
