"""Activation functions as ONNX operators."""

from __future__ import annotations

import math
from collections.abc import Callable

from .builder import GraphBuilder


def activate(builder: GraphBuilder, kind: str, at: str, x: str) -> str:
    """Write an activation function, by its name in `Encoder`. Nodes are named after `at`."""
    return _ACTIVATIONS[kind](builder, f"{at}.{kind}", x)


def _gelu(builder: GraphBuilder, at: str, x: str) -> str:
    if builder.low:  # for x < 0, 1 + erf(x) is near 0 and would lose its digits
        return builder.op("Gelu", at, x)
    y = builder.op("Div", f"{at}.div", x, builder.number(math.sqrt(2)))
    y = builder.op("Add", f"{at}.add", builder.op("Erf", f"{at}.erf", y), builder.number(1.0))
    return builder.op("Mul", at, builder.op("Mul", f"{at}.mul", x, y), builder.number(0.5))


def _gelu_tanh(builder: GraphBuilder, at: str, x: str) -> str:
    if builder.low:  # x ** 3 overflows fp16 from x = 41 on
        return builder.op("Gelu", at, x, approximate="tanh")
    y = builder.op("Pow", f"{at}.cube", x, builder.number(3.0))
    y = builder.op("Mul", f"{at}.small", y, builder.number(0.044715))
    y = builder.op("Add", f"{at}.inner", x, y)
    y = builder.op("Mul", f"{at}.scaled", y, builder.number(math.sqrt(2 / math.pi)))
    y = builder.op(
        "Add", f"{at}.add", builder.op("Tanh", f"{at}.tanh", y), builder.number(1.0)
    )
    return builder.op("Mul", at, builder.op("Mul", f"{at}.half", x, builder.number(0.5)), y)


def _silu(builder: GraphBuilder, at: str, x: str) -> str:
    return builder.op("Mul", at, x, builder.op("Sigmoid", f"{at}.sigmoid", x))


def _quick_gelu(builder: GraphBuilder, at: str, x: str) -> str:
    y = builder.op("Mul", f"{at}.scaled", x, builder.number(1.702))
    return builder.op("Mul", at, x, builder.op("Sigmoid", f"{at}.sigmoid", y))


_ACTIVATIONS: dict[str, Callable[[GraphBuilder, str, str], str]] = {
    "gelu": _gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": _silu,
    "relu": lambda builder, at, x: builder.op("Relu", at, x),
    "tanh": lambda builder, at, x: builder.op("Tanh", at, x),
    "sigmoid": lambda builder, at, x: builder.op("Sigmoid", at, x),
}
