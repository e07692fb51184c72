"""Pools and normalisation of sentence embeddings as ONNX operators.

All pools except `first` and `max` are weighted sums over positions. These weights are computed
in float32, because sums over many tokens may leave the range of fp16.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from prumux.optimizer.model.sizes import Encoder, Pool

from .builder import GraphBuilder


def pool(b: GraphBuilder, encoder: Encoder, x: str, mask: str) -> str:
    """Write the input of the head, from states [B, T, D]; see `Ops.pool`."""
    match encoder.pooling:
        case "first":
            return b.op("Gather", "head.first", x, b.integer(0), axis=1)  # [B, D]
        case "mean":
            return mean(b, x, mask)
        case "mean_sqrt":
            return pooled(b, "mean_sqrt", x, mask)
        case "all":
            return x
        case "several":
            found = [pooled(b, kind, x, mask) for kind in encoder.pools]
            return found[0] if len(found) == 1 else b.op("Concat", "head", *found, axis=-1)


def mean(b: GraphBuilder, x: str, mask: str) -> str:
    """The mean of states [B, T, D] at real positions, [B, D], in the graph's own type."""
    real = b.op("Unsqueeze", "head.mask", mask, b.integers(2))
    real = b.op("Cast", "head.real", real, to=b.element)
    total = b.op("ReduceSum", "head.tokens", real, b.integers(1), keepdims=0)
    total = b.op("Max", "head.count", total, b.number(1.0))
    x = b.op("Mul", "head.kept", x, real)
    x = b.op("ReduceSum", "head.sum", x, b.integers(1), keepdims=0)
    return b.op("Div", "head.mean", x, total)


def pooled(b: GraphBuilder, kind: Pool, x: str, mask: str) -> str:
    """Write one pool of states: [B, T, D] to [B, D].

    Args:
        b: the builder to write to.
        kind: the kind of pool.
        x: the states.
        mask: attention mask of the rows, int64 [B, T].
    """
    at = f"head.{kind}"
    if kind == "first":
        return b.op("Gather", at, x, b.integer(0), axis=1)
    if kind == "max":
        return _largest(b, at, x, mask)
    share = _shares(b, kind, at, mask)
    share = b.op("Unsqueeze", f"{at}.wide", share, b.integers(2))
    if b.low:
        share = b.op("Cast", f"{at}.share.low", share, to=b.element)
    x = b.op("Mul", f"{at}.kept", x, share)
    return b.op("ReduceSum", at, x, b.integers(1), keepdims=0)


def _largest(b: GraphBuilder, at: str, x: str, mask: str) -> str:
    """The largest value of each dimension at real positions.

    GlobalMaxPool is used because it is the same in all opsets. ReduceMax takes its axes as an
    attribute in some opsets and as an input in others.
    """
    real = b.op("Unsqueeze", f"{at}.mask", mask, b.integers(2))
    real = b.op("Cast", f"{at}.real", real, to=TensorProto.BOOL)
    x = b.op("Where", f"{at}.kept", real, x, b.number(b.lowest))
    x = b.op("Transpose", f"{at}.turned", x, perm=(0, 2, 1))
    x = b.op("GlobalMaxPool", f"{at}.largest", x)
    return b.op("Squeeze", at, x, b.integers(2))


def _shares(b: GraphBuilder, kind: Pool, at: str, mask: str) -> str:
    """The weight of each position, float32 [B, T]."""
    one = b.constant("float32.1", _number(1.0))
    real = b.op("Cast", f"{at}.real", mask, to=TensorProto.FLOAT)
    if kind in ("weighted_mean", "last"):
        shape = b.op("Shape", f"{at}.shape", mask)
        length = b.op("Gather", f"{at}.length", shape, b.integer(1))
        place = b.op("Range", f"{at}.range", b.integer(0), length, b.integer(1))
        place = b.op("Cast", f"{at}.places", place, to=TensorProto.FLOAT)
        place = b.op("Add", f"{at}.place", place, one)  # 1, 2, ...
        if kind == "last":
            count = _total(b, at, real)
            same = b.op("Equal", f"{at}.same", place, count)
            return b.op("Cast", f"{at}.share", same, to=TensorProto.FLOAT)
        real = b.op("Mul", f"{at}.weight", real, place)
    total = b.op("Max", f"{at}.count", _total(b, at, real), one)
    if kind == "mean_sqrt":
        total = b.op("Sqrt", f"{at}.root", total)
    return b.op("Div", f"{at}.share", real, total)


def _total(b: GraphBuilder, at: str, real: str) -> str:
    return b.op("ReduceSum", f"{at}.total", real, b.integers(1), keepdims=1)


def _number(value: float) -> NDArray[np.float32]:
    return np.array(value, dtype=np.float32)


def normalized(b: GraphBuilder, x: str) -> str:
    """Scale vectors to length 1, in float32, because squares may leave fp16's range."""
    at = f"{x}.unit"
    wide = b.op("Cast", f"{at}.float", x, to=TensorProto.FLOAT) if b.low else x
    square = b.op("Mul", f"{at}.square", wide, wide)
    total = b.op("ReduceSum", f"{at}.total", square, b.integers(-1), keepdims=1)
    root = b.op("Sqrt", f"{at}.root", total)
    least = b.constant("float32.1e-12", _number(1e-12))
    y = b.op("Div", at, wide, b.op("Max", f"{at}.length", root, least))
    return b.op("Cast", f"{at}.low", y, to=b.element) if b.low else y
