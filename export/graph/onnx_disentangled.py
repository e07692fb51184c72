"""Write the products of queries and keys with distance vectors, for `Ops.attention`.

Distance vectors do not depend on the inputs. So this module computes their norm and linear
maps in float32, and the graph only contains the resulting keys and queries. T tokens have 2T -
1 distances. In the products with all distance vectors, [T, 2T], each row starts at distance 1
- T. In row t, the score of position s is in column s - t + T - 1. So row t must move t columns
to the left. A shift of the flat values does this without an index:

    flat[t * 2T + (s - t + T - 1)] = flat[T - 1 + t * (2T - 1) + s]

The values from T - 1 on are read as rows of 2T - 1, and the first T columns are kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.model.ops import Disentangled
from prumux.optimizer.model.sizes import Branch, Encoder

from .builder import GraphBuilder


@dataclass(frozen=True, eq=False)
class DistanceTerms:
    """Writes the terms that distance vectors add to attention scores."""

    build: GraphBuilder
    encoder: Encoder
    of: Disentangled
    mask: str
    """The current attention mask, [B, T]."""
    first: bool
    """True if queries exist only for the first position."""
    shared: dict[object, str]
    """Names of values that all layers share. This class adds names."""

    def products(self, branch: Branch, q: str, k: str, factor: float) -> list[str]:
        """Write the terms of the scores, each [B, H, Tq, T].

        Args:
            branch: the attention branch.
            q: queries, [B, H, Tq, K]. They are scaled already.
            k: keys, [B, H, T, K].
            factor: factor of the products with keys.
        """
        b, of, first, found = self.build, self.of, self.first, []
        if of.key:
            name = f"{branch.name}.distance_keys"
            table = self.vectors(branch, of.key).transpose(1, 2)  # [H, K, R]
            rows = b.op("Gather", name, b.floats(f"{name}.all", table), self._rows(1), axis=2)
            x = b.op("MatMul", f"{name}.scores", q, rows)  # [B, H, Tq, 2T] or [B, H, 1, T]
            found.append(x if first else self._shifted(name, x))
        if of.query:
            name = f"{branch.name}.distance_queries"
            table = self.vectors(branch, of.query) * factor  # [H, R, K]
            stored = b.floats(f"{name}.all", table if first else table.transpose(1, 2))
            rows = b.op("Gather", name, stored, self._rows(-1), axis=1 if first else 2)
            if first:
                x = b.op("Mul", f"{name}.products", k, rows)  # [B, H, T, K]
                x = b.op("ReduceSum", f"{name}.scores", x, b.integers(-1), keepdims=1)
            else:
                x = self._shifted(name, b.op("MatMul", f"{name}.scores", k, rows))
            found.append(b.op("Transpose", f"{name}.turned", x, perm=(0, 1, 3, 2)))
        return found

    def vectors(self, branch: Branch, name: str) -> Tensor:
        """Map all distance vectors, and split the result into heads: [H, R, K]."""
        weights, e, norm = self.build.weights, self.encoder, self.of.norm
        x = weights[f"{self.of.table}.weight"]
        if norm:
            parts = weights[f"{norm}.weight"], weights.get(f"{norm}.bias")
            x = F.layer_norm(x, x.shape[-1:], *parts, e.norm_eps)
        x = F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))
        return x.reshape(len(x), e.layers[branch.index].heads, e.head_dim).transpose(0, 1)

    def _rows(self, sign: int) -> str:
        """Row of the table for each column, int64 [2T], or [T] for one query.

        Column j has the distance j - T + 1, from query to key (sign 1) or from key to query
        (sign -1).
        """
        sign = 1 if self.first else sign
        key = ("rows", self.of.table, sign, self.first)
        if key not in self.shared:
            b, half = self.build, len(self.of.rows) // 2
            at = f"{self.of.table}.rows.{self.mask}.{sign}.{self.first}"
            apart = self._distances(at, sign)
            apart = b.op("Max", f"{at}.least", apart, b.integer(-half))
            apart = b.op("Min", f"{at}.most", apart, b.integer(half))
            index = b.op("Add", f"{at}.index", apart, b.integer(half))
            table = b.constant(f"{self.of.table}.rows", self.of.rows)
            self.shared[key] = b.op("Gather", at, table, index)
        return self.shared[key]

    def _distances(self, at: str, sign: int) -> str:
        """Distance of each column, see `_rows`."""
        b, length, one = self.build, self._length(), self.build.integer(1)
        if self.first:
            return b.op("Range", f"{at}.range", b.integer(0), length, one)
        if sign > 0:
            start = b.op("Sub", f"{at}.start", one, length)
            end = b.op("Add", f"{at}.end", length, one)
        else:
            start = b.op("Sub", f"{at}.start", length, one)
            end = b.op("Sub", f"{at}.end", b.integer(-1), length)
        return b.op("Range", f"{at}.range", start, end, b.integer(sign))

    def _shifted(self, at: str, x: str) -> str:
        """Shift row t by t columns to the left, from column T - 1 on; to [B, H, T, T]."""
        b = self.build
        start, end, shape, length = self._shift()
        y = b.op("Reshape", f"{at}.flat", x, b.integers(0, 0, -1))
        y = b.op("Slice", f"{at}.cut", y, start, end, b.integers(2))
        y = b.op("Reshape", f"{at}.shifted", y, shape)
        return b.op("Slice", f"{at}.square", y, b.integers(0), length, b.integers(3))

    def _shift(self) -> tuple[str, str, str, str]:
        """int64 vectors T - 1, T - 1 + T(2T - 1), the shape of shifted rows, and T."""
        keys = [("shift", part) for part in ("start", "end", "shape", "length")]
        if keys[0] not in self.shared:
            b, at = self.build, f"shift.{self.mask}"
            length = b.op("Unsqueeze", f"{at}.length", self._length(), b.integers(0))
            start = b.op("Sub", f"{at}.start", length, b.integers(1))
            width = b.op("Add", f"{at}.width", length, start)
            end = b.op("Add", f"{at}.end", b.op("Mul", f"{at}.size", length, width), start)
            shape = b.op("Concat", f"{at}.shape", b.integers(0, 0, -1), width, axis=0)
            self.shared.update(zip(keys, (start, end, shape, length), strict=True))
        start, end, shape, length = (self.shared[key] for key in keys)
        return start, end, shape, length

    def _length(self) -> str:
        """T, an int64 scalar."""
        if "length" not in self.shared:
            b, at = self.build, f"length.{self.mask}"
            shape = b.op("Shape", f"{at}.shape", self.mask)
            self.shared["length"] = b.op("Gather", at, shape, b.integer(1), axis=0)
        return self.shared["length"]
