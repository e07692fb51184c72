"""The operators with which an architecture is written.

A family describes its forward pass once, with the operators of `Ops`. Each implementation of
`Ops` interprets this description:

- `TorchOps` runs it, with gradients of weights and of the factors of units (see `gate`).
- `OnnxOps` (in prumux.export) writes it as a graph.
- `CountOps` counts multiply-adds.

Operators are coarse and are named by their weights. The implementation decides on layout,
number types, masks and folding. So a family contains no Reshape, no Transpose and no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .axes import Weight
from .sizes import Branch, Encoder

Value = Any
"""A value between operators: a tensor, the name of a value in a graph, or an extent."""
Source = Literal["ids", "positions", "token_types", "segments", "pairs"]
"""The index of a lookup.

- segments: token id + vocabulary size * token type, so each token type has its own rows.
- pairs: the hash of a token and its predecessor, see `families/bag.py`.
"""


@dataclass(frozen=True)
class Lookup:
    """One table of the embeddings, and the index that selects its rows."""

    table: str
    source: Source


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a family: the sum of lookups, then a norm and a linear map.

    An implementation of `Ops` may join tables, or fold the keys of mixed rows into the norm.
    """

    lookups: tuple[Lookup, ...]
    weights: tuple[Weight, ...]
    norm: str | None = None
    project: str | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: dimensions j and j + K/2 rotate by the angle position * base^(-2j/K).

    `interleaved` pairs dimensions 2j and 2j + 1 instead. RoFormer, Su et al. 2021,
    https://arxiv.org/abs/2104.09864
    """

    base: float
    interleaved: bool = False


@dataclass(frozen=True, eq=False)
class Relative:
    """A learnt bias for the distance from query to key, added to the scores of each head.

    The table has one row per bucket and one column per head. T5, Raffel et al. 2020,
    https://arxiv.org/abs/1910.10683
    """

    table: str
    buckets: NDArray[np.int64]
    """Bucket of distance d (key position minus query position) at index d + size // 2."""


@dataclass(frozen=True, eq=False)
class Disentangled:
    """One learnt vector for each distance from query to key, used in the attention scores.

    Let r be the vector of the distance from query to key, and W_key and W_query linear maps:

        score = q . k + q . W_key r + W_query r . k

    All terms have the factor `scale` of attention. DeBERTa, He et al. 2020,
    https://arxiv.org/abs/2006.03654
    """

    table: str
    """The table of the vectors, [rows, D]. All layers share it."""
    norm: str | None
    """The norm of the vectors; None = no norm."""
    rows: NDArray[np.int64]
    """Row of distance d (key position minus query position) at index d + size // 2. Larger
    distances use the first or the last index."""
    key: str | None
    """The linear map W_key; None leaves its term out."""
    query: str | None
    """The linear map W_query; None leaves its term out."""


class Ops(Protocol):
    """The operators. The docstrings give shapes in the plain layout, [B, T, width]."""

    encoder: Encoder

    def embed(self) -> Value:
        """The embeddings of the inputs, [B, T, D]."""

    def linear(self, name: str, x: Value) -> Value:
        """The linear map of this name, with its bias if it has one."""

    def norm(self, name: str, x: Value, *, centred: bool = True) -> Value:
        """LayerNorm over the last axis, with its shift if it has one.

        If not `centred`, the mean is not subtracted: RMSNorm, Zhang and Sennrich 2019,
        https://arxiv.org/abs/1910.07467
        """

    def activation(self, kind: str, x: Value) -> Value:
        """An activation function, by its name in `Encoder`."""

    def multiply(self, x: Value, y: Value) -> Value:
        """The elementwise product."""

    def attention(
        self,
        branch: Branch,
        query: Value,
        key: Value,
        value: Value,
        *,
        rotary: Rotary | None = None,
        relative: Relative | None = None,
        disentangled: Disentangled | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> Value:
        """Scaled dot-product attention over real tokens, [B, T, H*K] in and out.

        Args:
            branch: determines the number of heads.
            query: queries of all positions, or only of the first positions.
            key: keys of all positions.
            value: values of all positions.
            rotary: rotates queries and keys by their positions first.
            relative: bias of the scores.
            disentangled: vectors of distances that enter the scores.
            window: the largest distance between two positions that attend to each other.
            scale: factor of the products of queries and keys. Default: 1 / sqrt(K).
        """

    def gate(self, branch: Branch, units: Value) -> Value:
        """The input units of the output map, each multiplied by its factor.

        A factor is 0 for a masked unit, else 1. Importance uses gradients of the factors;
        `learn-masks` uses values between 0 and 1.
        """

    def write(self, branch: Branch, inner: Value, x: Value) -> Value:
        """The output map of a branch plus the residual stream x."""

    def first(self, x: Value) -> Value:
        """The first position; its axis is kept: [B, 1, D]."""

    def pool(self, x: Value) -> Value:
        """The input of the head, by `Encoder.pooling`: [B, D], [B, pools * D] or x."""

    def normalize(self, x: Value) -> Value:
        """Vectors scaled to length 1 along the last axis. A zero vector is unchanged."""

    def mix(self, x: Value) -> Value:
        """Mix rows [B, T, D] into mixed rows [B/n, T, D]. Masks are mixed, too."""

    def unmix(self, x: Value) -> Value:
        """Separate mixed rows [B/n, ..., D] into states of single rows, [B, ..., D]."""
