"""Products of queries and keys with vectors of distances, as a graph (`Ops.attention`).

Vectors do not depend on the inputs, so their norm and maps are computed here, in float32, and
the graph holds the keys and queries that come of them. With T tokens there are 2T - 1
distances. Products with the vectors of all of them, [T, 2T], hold at row t the distances
from 1 - T on, and the score of position s stands s - t + T - 1 columns further: row t has to
move t columns to the left. That takes no index, but a shift:

    flat[t * 2T + (s - t + T - 1)] = flat[T - 1 + t * (2T - 1) + s]

so all numbers from T - 1 on are read as rows of 2T - 1, of which the first T columns count.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.model.ops import Disentangled
from prumux.optimizer.model.sizes import Branch

if TYPE_CHECKING:
    from .onnx_ops import OnnxOps


def products(
    ops: OnnxOps,
    branch: Branch,
    of: Disentangled,
    q: str,
    k: str,
    *,
    factor: float,
    first: bool,
) -> list[str]:
    """The terms of the scores, [B, H, Tq, T] each.

    Args:
        ops: writes them.
        branch: of the attention.
        of: vectors and maps.
        q: queries, [B, H, Tq, K].
        k: keys, [B, H, T, K].
        factor: of the products with keys; queries have theirs.
        first: whether the first position alone has a query.
    """
    b, at, found = ops.build, branch.name, []
    if of.key:
        name = f"{at}.distance_keys"
        table = vectors(ops, branch, of, of.key).transpose(1, 2)  # [H, K, R]
        rows = b.op(
            "Gather", name, b.floats(f"{name}.all", table), _rows(ops, of, 1, first), axis=2
        )
        x = b.op("MatMul", f"{name}.scores", q, rows)  # [B, H, Tq, 2T] or [B, H, 1, T]
        found.append(x if first else _shifted(ops, name, x))
    if of.query:
        name = f"{at}.distance_queries"
        table = vectors(ops, branch, of, of.query) * factor  # [H, R, K]
        stored = b.floats(f"{name}.all", table if first else table.transpose(1, 2))
        rows = b.op("Gather", name, stored, _rows(ops, of, -1, first), axis=1 if first else 2)
        if first:
            x = b.op("Mul", f"{name}.products", k, rows)  # [B, H, T, K]
            x = b.op("ReduceSum", f"{name}.scores", x, b.integers(-1), keepdims=1)
        else:
            x = _shifted(ops, name, b.op("MatMul", f"{name}.scores", k, rows))
        found.append(b.op("Transpose", f"{name}.turned", x, perm=(0, 1, 3, 2)))
    return found


def vectors(ops: OnnxOps, branch: Branch, of: Disentangled, name: str) -> Tensor:
    """What a linear map makes of all vectors, split into heads: [H, R, K]."""
    weights, e = ops.build.weights, ops.encoder
    x = weights[f"{of.table}.weight"]
    if of.norm:
        parts = weights[f"{of.norm}.weight"], weights.get(f"{of.norm}.bias")
        x = F.layer_norm(x, x.shape[-1:], *parts, e.norm_eps)
    x = F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
    return x.reshape(len(x), e.layers[branch.index].heads, e.head_dim).transpose(0, 1)


def _rows(ops: OnnxOps, of: Disentangled, sign: int, first: bool) -> str:
    """Rows of the table in the order of columns, int64 [2T], or [T] where one query is left.

    Column j is for the distance j - T + 1 from query to key (sign 1) or back (sign -1).
    """
    sign = 1 if first else sign
    key = ("rows", of.table, sign, first)
    if key in ops.shared:
        return ops.shared[key]
    b, half = ops.build, len(of.rows) // 2
    at = f"{of.table}.rows.{ops.mask}.{sign}.{first}"
    length, zero, one = _length(ops), b.integer(0), b.integer(1)
    if first:
        apart = b.op("Range", f"{at}.range", zero, length, one)
    elif sign > 0:
        start, end = (
            b.op("Sub", f"{at}.start", one, length),
            b.op("Add", f"{at}.end", length, one),
        )
        apart = b.op("Range", f"{at}.range", start, end, one)
    else:
        start = b.op("Sub", f"{at}.start", length, one)
        end = b.op("Sub", f"{at}.end", b.integer(-1), length)
        apart = b.op("Range", f"{at}.range", start, end, b.integer(-1))
    apart = b.op("Max", f"{at}.least", apart, b.integer(-half))
    apart = b.op("Min", f"{at}.most", apart, b.integer(half))
    index = b.op("Add", f"{at}.index", apart, b.integer(half))
    table = b.constant(f"{of.table}.rows", of.rows)
    ops.shared[key] = b.op("Gather", at, table, index)
    return ops.shared[key]


def _shifted(ops: OnnxOps, at: str, x: str) -> str:
    """[B, H, T, T] of [B, H, T, 2T]: row t moved t columns to the left, from T - 1 on."""
    b = ops.build
    flat = b.op("Reshape", f"{at}.flat", x, b.integers(0, 0, -1))
    start, end, shape, length = _shift(ops)
    y = b.op("Slice", f"{at}.cut", flat, start, end, b.integers(2))
    y = b.op("Reshape", f"{at}.shifted", y, shape)
    return b.op("Slice", f"{at}.square", y, b.integers(0), length, b.integers(3))


def _shift(ops: OnnxOps) -> tuple[str, str, str, str]:
    """What `_shifted` needs, int64 vectors: T - 1, T - 1 + T(2T - 1), the shape, and T."""
    keys = [("shift", part) for part in ("start", "end", "shape", "length")]
    if keys[0] not in ops.shared:
        b, at = ops.build, f"shift.{ops.mask}"
        length = b.op("Unsqueeze", f"{at}.length", _length(ops), b.integers(0))
        start = b.op("Sub", f"{at}.start", length, b.integers(1))
        width = b.op("Add", f"{at}.width", length, start)  # 2T - 1
        end = b.op("Add", f"{at}.end", b.op("Mul", f"{at}.size", length, width), start)
        shape = b.op("Concat", f"{at}.shape", b.integers(0, 0, -1), width, axis=0)
        ops.shared |= dict(zip(keys, (start, end, shape, length), strict=True))
    start, end, shape, length = (ops.shared[key] for key in keys)
    return start, end, shape, length


def _length(ops: OnnxOps) -> str:
    """T, an int64 scalar."""
    if "length" not in ops.shared:
        b, at = ops.build, f"length.{ops.mask}"
        ops.shared["length"] = b.op(
            "Gather", at, b.op("Shape", f"{at}.shape", ops.mask), b.integer(1), axis=0
        )
    return ops.shared["length"]
