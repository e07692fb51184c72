"""The ragged layout: all steps except attention run on real tokens only, without padding.

If batches keep the order of arrival, about half of their positions are padding. Products,
norms, activations and residuals work token by token, so they run on the N real tokens of a
batch, [N, D]. Only attention needs rows. So queries, keys and values are gathered to [B, T,
width], and the contexts are gathered back. Both gathers use an index that is computed once
from the mask:

    index    [N]     the position in [B*T] of each token
    place    [B, T]  the token at each position; at padding, the last token before it

At padding, `place` repeats a token of the same row, and the mask hides its score. So no row of
zeros is needed, and no value of a row reaches another row. These positions are kept as tokens:

- real tokens;
- the first position of every row, because output heads read it;
- all positions of a row without tokens, so that the row's answer equals the plain layout's.

The fp32 answers equal the answers of the plain layout. In int8 they may differ a little,
because the range of an activation comes from real tokens alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from onnx import TensorProto

from .builder import GraphBuilder
from .onnx_embeddings import look_up, look_up_slot
from .onnx_ops import EMBEDDED, MASK, OnnxOps


@dataclass(frozen=True)
class TokenIndex:
    """Names of two index tensors in the graph.

    `index` gathers tokens from [B, T], and `place` puts them back.
    """

    index: str
    """[N], int64: the position of each token in the flat [B*T]."""
    place: str
    """[B, T], int64: the token at each position."""


def tokens_of(b: GraphBuilder, mask: str) -> TokenIndex:
    """Write the token indices of a mask [B, T]."""
    at = f"tokens.{mask}"
    shape = b.op("Shape", f"{at}.shape", mask)
    length = b.op("Gather", f"{at}.length", shape, b.integer(1))
    column = b.op("Range", f"{at}.range", b.integer(0), length, b.integer(1))
    first = b.op("Equal", f"{at}.first", column, b.integer(0))  # [T]
    real = b.op("Cast", f"{at}.real", mask, to=TensorProto.BOOL)
    total = b.op("ReduceSum", f"{at}.total", mask, b.integers(1), keepdims=1)
    empty = b.op("Equal", f"{at}.empty", total, b.integer(0))  # [B, 1]
    kept = b.op("Or", f"{at}.kept", b.op("Or", f"{at}.some", real, first), empty)
    flat = b.op("Reshape", f"{at}.flat", kept, b.integers(-1))
    index = b.op("NonZero", f"{at}.nonzero", flat)
    index = b.op("Reshape", f"{at}.index", index, b.integers(-1))
    ones = b.op("Cast", f"{at}.ones", flat, to=TensorProto.INT64)
    count = b.op("CumSum", f"{at}.count", ones, b.integer(0))
    count = b.op("Sub", f"{at}.token", count, b.integer(1))
    return TokenIndex(index, b.op("Reshape", f"{at}.place", count, shape))


@dataclass(eq=False)
class RaggedOps(OnnxOps):
    """`OnnxOps` on tokens: values of all positions are [N, width].

    Values of the first position stay [B, 1, D]. Mixing and demultiplexing need rows, so values
    are gathered to [B, T, width] before these steps.
    """

    known: dict[str, TokenIndex] = field(default_factory=dict)
    """Token indices by the name of the mask: the mask of single rows and of mixed rows."""

    @property
    def _tokens(self) -> TokenIndex:
        """Token indices of the current mask."""
        if self.mask not in self.known:
            self.known[self.mask] = tokens_of(self.build, self.mask)
        return self.known[self.mask]

    def embed(self) -> str:
        """See `Ops.embed`. Looks up real tokens only."""
        if self._mixes_first:
            return EMBEDDED
        x = look_up(self.build, self.encoder, self._picked)
        if self.encoder.last_attention >= 0:
            self._padding()
        return x

    def first(self, x: str) -> str:
        """See `Ops.first`."""
        name = f"{x}.first"
        if name not in self.shared:
            b = self.build
            column = f"{self._tokens.place}.column"
            if column not in self.shared:
                self.shared[column] = b.first(column, self._tokens.place)  # [B, 1]
            self.shared[name] = b.op("Gather", name, self._use(x), column)
        self.narrow.add(name)
        return name

    def pool(self, x: str) -> str:
        """See `Ops.pool`."""
        b, e = self.build, self.encoder
        if e.pooling == "all":
            return x
        narrow = e.narrow_from < len(e.layers)
        if e.pooling in ("mean", "mean_sqrt") or (e.sentence is not None and not narrow):
            return super().pool(self._padded(self._use(x)))
        if narrow:
            return super().pool(x)
        row = b.op("Gather", "head.tokens", self._tokens.place, b.integer(0), axis=1)  # [B]
        return b.op("Gather", "head.first", self._use(x), row)

    def mix(self, x: str) -> str:
        """See `Ops.mix`. A mixed row has a token where any row of its group has one."""
        if x != EMBEDDED and not self._mixes_narrow:
            x = self._padded(self._use(x))  # uses the token indices of single rows
        return super().mix(x)

    def _wide(self, at: str, mask: str) -> str:
        if self._mixes_narrow:
            return super()._wide(at, mask)
        b = self.build
        return b.op("Unsqueeze", f"{at}.wide", self._picked(mask), b.integers(1))  # [N, 1]

    def _keyed(self, x: str, i: int) -> str:
        if x == EMBEDDED:
            key = self.build.weights["mux.keys"][i]
            return look_up_slot(self.build, self.encoder, i, key, self._picked)
        x = super()._keyed(x, i)
        if self._mixes_narrow:
            return x
        return self._packed(f"{x}.tokens", x, self.encoder.hidden)

    def _apart(self, x: str) -> str:
        if self.encoder.reads_first:
            return super()._apart(x)
        self.mask = MASK  # from here on, tokens belong to single rows again
        return self._packed("demux.rows", x, self.encoder.hidden)

    def _of_positions(self, x: str) -> str:
        """Logits [B, T, C]. Padding has the logits of the last token before it."""
        return self._padded(x)

    def _joined(self, name: str, x: str, width: int, first: bool) -> str:
        if first:
            return super()._joined(name, x, width, first)
        return self._packed(name, x, width)

    def _padded(self, x: str) -> str:
        """Gather [N, width] to [B, T, width]."""
        return self.build.op("Gather", f"{x}.places", x, self._tokens.place)

    def _packed(self, name: str, x: str, width: int) -> str:
        """Gather [B, T, ..., width] to [N, width]."""
        b = self.build
        flat = b.op("Reshape", f"{name}.flat", x, b.integers(-1, width))
        return b.op("Gather", name, flat, self._tokens.index)

    def _picked(self, index: str) -> str:
        """Gather integers of positions, [B, T] or [1, T], to tokens, [N]."""
        b = self.build
        if self.encoder.positions_from == "index" and index.endswith(".positions"):
            shape = b.op("Shape", f"{index}.of", self.mask)
            index = b.op("Expand", f"{index}.wide", index, shape)
        flat = b.op("Reshape", f"{index}.flat", index, b.integers(-1))
        return b.op("Gather", f"{index}.picked", flat, self._tokens.index)
