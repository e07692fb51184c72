"""Nodes and constants of an ONNX graph in the order in which they are written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from prumux.optimizer.ir import Encoder

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Tape:
    """Nodes and constants in the order in which they are written."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Append a node; its one output has the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """An initializer, stored once a name."""
        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"float.{value:.9g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """An int64 vector."""
        text = "x".join(map(str, values))
        return self.constant(f"int.{text}", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """An int64 scalar."""
        return self.constant(f"index.{value}", np.array(value, np.int64))

    def weight(self, name: str) -> str:
        """A weight as it is."""
        return self.constant(name, self.weights[name].numpy())

    def linear(self, name: str, x: str, node: str = "") -> str:
        """[..., in] -> [..., out]; the node has the name of its weights unless told."""
        weight = self.constant(f"{name}.weight", self.weights[f"{name}.weight"].numpy().T)
        y = self.op("MatMul", f"{node or name}.matmul", x, weight)
        return self.op("Add", node or name, y, self.weight(f"{name}.bias"))

    def norm(self, name: str, x: str, eps: float, node: str = "") -> str:
        """LayerNorm over the last axis; named as `linear` is."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op(
            "LayerNormalization", node or name, x, weight, bias, axis=-1, epsilon=eps
        )

    def first(self, name: str, x: str) -> str:
        """The first position, kept as an axis."""
        zero, one = self.integers(0), self.integers(1)
        return self.op("Slice", name, x, zero, one, one)

    def slot(self, name: str, x: str, i: int, n: int) -> str:
        """Every n-th row from row i on."""
        ends = self.integers(i), self.integers(2**62), self.integers(0), self.integers(n)
        return self.op("Slice", name, x, *ends)


def attention_bias(tape: Tape, attention_mask: str) -> str:
    """0 at real positions and the lowest float at padding, [B, 1, 1, T]."""
    prefix = "" if attention_mask == INPUTS[1] else "mux."
    x = tape.op("Unsqueeze", f"{prefix}mask.heads", attention_mask, tape.integers(1))
    x = tape.op("Unsqueeze", f"{prefix}mask.queries", x, tape.integers(2))
    x = tape.op("Cast", f"{prefix}mask.float", x, to=TensorProto.FLOAT)
    x = tape.op("Sub", f"{prefix}mask.padding", tape.number(1.0), x)
    lowest = tape.number(float(np.finfo(np.float32).min))
    return tape.op("Mul", f"{prefix}mask.bias", x, lowest)


def close(tape: Tape, e: Encoder, at: str, y: str, x: str) -> str:
    """Residual and LayerNorm of a block."""
    # y first: the fusion takes the first Add for the block, and ELECTRA's x is one as well.
    return tape.norm(f"{at}.norm", tape.op("Add", f"{at}.residual", y, x), e.norm_eps)


def activate(tape: Tape, kind: str, at: str, x: str) -> str:
    """An activation function by its name in `Encoder`."""
    return _ACTIVATIONS[kind](tape, f"{at}.{kind}", x)


def _gelu(tape: Tape, at: str, x: str) -> str:
    y = tape.op("Div", f"{at}.div", x, tape.number(math.sqrt(2)))
    y = tape.op("Add", f"{at}.add", tape.op("Erf", f"{at}.erf", y), tape.number(1.0))
    return tape.op("Mul", at, tape.op("Mul", f"{at}.mul", x, y), tape.number(0.5))


def _gelu_tanh(tape: Tape, at: str, x: str) -> str:
    y = tape.op("Pow", f"{at}.cube", x, tape.number(3.0))
    y = tape.op("Mul", f"{at}.small", y, tape.number(0.044715))
    y = tape.op("Add", f"{at}.inner", x, y)
    y = tape.op("Mul", f"{at}.scaled", y, tape.number(math.sqrt(2 / math.pi)))
    y = tape.op("Add", f"{at}.add", tape.op("Tanh", f"{at}.tanh", y), tape.number(1.0))
    return tape.op("Mul", at, tape.op("Mul", f"{at}.half", x, tape.number(0.5)), y)


def _silu(tape: Tape, at: str, x: str) -> str:
    return tape.op("Mul", at, x, tape.op("Sigmoid", f"{at}.sigmoid", x))


_ACTIVATIONS: dict[str, Callable[[Tape, str, str], str]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "silu": _silu,
    "relu": lambda tape, at, x: tape.op("Relu", at, x),
    "tanh": lambda tape, at, x: tape.op("Tanh", at, x),
}
