"""The operators that an architecture is written in.

A family describes its forward pass once, over `Ops`. Each implementation of `Ops` is a reading
of this description. `TorchOps` runs it and gives gradients, also those of mask factors.
`OnnxOps` (in prumux.export) writes it as a graph. `CountOps` counts multiply-adds. Operators
are coarse and named by their weights. The reading decides layout, number types, masks and
folding, so a family writes no Reshape, no Transpose and no mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from .axes import Weight
from .sizes import Branch, Encoder

Value = Any
"""A value between operators: a tensor, the name of a graph's value, or a count."""
Source = Literal["ids", "positions", "token_types", "segments", "pairs"]
"""`segments`: token ids, those of the second text after all of the first. `pairs`: the hash of
each token and the one before it, see `families/bag.py`."""


@dataclass(frozen=True)
class Lookup:
    """One table of the embeddings, and what is looked up in it."""

    table: str
    source: Source


@dataclass(frozen=True)
class Embeddings:
    """The embeddings of a family: the sum of lookups, then a norm and a linear map.

    A reading may join tables, or fold the keys of mixed rows into the norm.
    """

    lookups: tuple[Lookup, ...]
    weights: tuple[Weight, ...]
    norm: str | None = None
    project: str | None = None


@dataclass(frozen=True)
class Rotary:
    """Rotary positions: dimensions j and j + K/2 of a head turn by position * base^(-2j/K).

    `interleaved` pairs dimensions 2j and 2j + 1 instead. RoFormer, Su et al. 2021,
    https://arxiv.org/abs/2104.09864
    """

    base: float
    interleaved: bool = False


@dataclass(frozen=True, eq=False)
class Relative:
    """A learnt bias of every head for the distance from query to key, added to the scores.

    The table has one row a bucket and one column a head: T5, Raffel et al. 2020,
    https://arxiv.org/abs/1910.10683
    """

    table: str
    buckets: NDArray[np.int64]
    """Bucket of distance d (key position minus query position) at index d + size // 2."""


@dataclass(frozen=True, eq=False)
class Disentangled:
    """Learnt vectors of distances, which queries and keys are compared with as well.

    With r the vector of the distance from query to key, and W its linear maps,

        score = q . k + q . W_key r + W_query r . k

    All terms have the factor `scale` of attention. DeBERTa, He et al. 2020,
    https://arxiv.org/abs/2006.03654
    """

    table: str
    """The vectors, one row each, as wide as the hidden size; all layers share them."""
    norm: str | None
    """The norm of the vectors, where there is one."""
    rows: NDArray[np.int64]
    """Row of distance d (key position minus query position) at index d + size // 2. Larger
    distances have the row of the first or the last index."""
    key: str | None
    """The linear map that makes keys of vectors; None leaves its term out."""
    query: str | None
    """The linear map that makes queries of vectors; None leaves its term out."""


class Ops(Protocol):
    """The operators. Shapes are those of the plain layout, [B, T, width]."""

    encoder: Encoder

    def embed(self) -> Value:
        """The embeddings of the inputs, [B, T, D]."""

    def linear(self, name: str, x: Value) -> Value:
        """The linear map of a name, with a bias where it has one."""

    def norm(self, name: str, x: Value, *, centred: bool = True) -> Value:
        """LayerNorm over the last axis, with a shift where it has one.

        Not `centred`, the mean is not taken out: RMSNorm, Zhang and Sennrich 2019,
        https://arxiv.org/abs/1910.07467
        """

    def activation(self, kind: str, x: Value) -> Value:
        """An activation function by its name in `Encoder`."""

    def multiply(self, x: Value, y: Value) -> Value:
        """The product, element by element."""

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
            branch: tells the number of heads.
            query: may have fewer positions than key and value: then the first ones.
            key: of all positions.
            value: of all positions.
            rotary: turns query and key by their positions first.
            relative: bias of the scores.
            disentangled: vectors of distances, compared with queries and keys.
            window: attend only where positions differ by at most this.
            scale: factor of the products of queries and keys; 1 / sqrt(K) unless told.
        """

    def gate(self, branch: Branch, units: Value) -> Value:
        """The units that the output map reads, times their mask factors."""

    def write(self, branch: Branch, inner: Value, x: Value) -> Value:
        """The output map of a branch plus the residual stream x."""

    def first(self, x: Value) -> Value:
        """The first position, kept as an axis: [B, 1, D]."""

    def pool(self, x: Value) -> Value:
        """The input of the head, as `Encoder.pooling` says: [B, D], [B, pools * D] or x."""

    def normalize(self, x: Value) -> Value:
        """Vectors scaled to length 1 along the last axis; a zero vector stays zero."""

    def mix(self, x: Value) -> Value:
        """Mixed rows [B/n, T, D] of rows [B, T, D]; masks follow."""

    def unmix(self, x: Value) -> Value:
        """States [B, ..., D] of the members of mixed rows [B/n, ..., D]."""
