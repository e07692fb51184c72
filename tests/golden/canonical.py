"""ONNX graphs without names, so that a graph that was only renamed stays equal."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections import Counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

DIGITS = 16
DIGEST_KEY = "prumux.origin"
"""Metadata whose value is a digest of the source weights: only that it is there is kept."""


def facts(proto: onnx.ModelProto) -> dict[str, Any]:
    """What a graph says, without the names of its nodes and values.

    `structure` is a digest of what the outputs are computed from: operators, attributes,
    shapes, scalars and int64 constants, and which value goes where. `sequence` is a digest of
    the operators in the order in which they are written.
    """
    graph = proto.graph
    kinds = [node.op_type for node in graph.node]
    large = [
        numpy_helper.to_array(x) for x in graph.initializer if x.dims and not _is_int64(x)
    ]
    return {
        "operators": dict(sorted(Counter(kinds).items())),
        "sequence": _digest(kinds),
        "structure": _digest(_values(proto)),
        "inputs": [_interface(x) for x in graph.input],
        "outputs": [_interface(x) for x in graph.output],
        "opsets": {x.domain: x.version for x in proto.opset_import},
        "ir_version": proto.ir_version,
        "producer": proto.producer_name,
        "metadata": {
            x.key: "DIGEST" if x.key == DIGEST_KEY else x.value for x in proto.metadata_props
        },
        "constants": dict(sorted(Counter(f"{x.dtype}{list(x.shape)}" for x in large).items())),
        "checksum": round(sum(checksum(x) for x in large), 9),
    }


def checksum(x: NDArray[Any]) -> float:
    """A projection of all values on a fixed random direction, about as large as one value."""
    direction = np.random.RandomState(zlib.crc32(repr(x.shape).encode())).uniform(
        -1, 1, x.size
    )
    return float(x.astype(np.float64).ravel() @ direction / np.sqrt(max(1, x.size)))


def _values(proto: onnx.ModelProto) -> list[str]:
    """A digest of each output: of its operator, attributes and the digests of its inputs."""
    known = {"": "none"} | {x.name: f"input {x.name}" for x in proto.graph.input}
    known |= {x.name: _digest(_constant(x)) for x in proto.graph.initializer}
    for node in proto.graph.node:
        attributes = {x.name: _attribute(x) for x in node.attribute}
        about = [node.domain, node.op_type, attributes, [known[x] for x in node.input]]
        for i, name in enumerate(node.output):
            known[name] = _digest([*about, i])
    return [known[x.name] for x in proto.graph.output]


def _constant(x: onnx.TensorProto) -> list[Any]:
    found = numpy_helper.to_array(x)
    small = not x.dims or _is_int64(x)
    return [str(found.dtype), list(x.dims), found.tolist() if small else "large"]


def _attribute(x: onnx.AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(x)
    if isinstance(value, onnx.TensorProto):
        return _constant(value)
    return value.decode() if isinstance(value, bytes) else value


def _interface(x: onnx.ValueInfoProto) -> list[Any]:
    kind = x.type.tensor_type
    return [x.name, kind.elem_type, [d.dim_param or d.dim_value for d in kind.shape.dim]]


def _is_int64(x: onnx.TensorProto) -> bool:
    return x.data_type == onnx.TensorProto.INT64


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=list)
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]
