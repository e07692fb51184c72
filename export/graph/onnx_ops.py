"""`Ops` as a graph: writes the forward pass in standard ONNX operators.

Patterns have the form that ONNX Runtime's transformer fusions match: constant head counts, the
two Unsqueezes of the mask, the order of the embedding sums, and Add nodes with the block
before the residual.

In fp16 and bf16 three rules prevent overflow. Steps whose intermediate values may overflow,
such as norms and Gelu, are one operator. Queries are scaled before their product with keys.
The bias that hides padding is half of the lowest number.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from onnx import TensorProto

from prumux.optimizer.model.ops import Disentangled, Relative, Rotary
from prumux.optimizer.model.sizes import Branch, Encoder

from .activations import activate
from .builder import INPUTS, GraphBuilder
from .onnx_disentangled import DistanceTerms
from .onnx_embeddings import look_up, look_up_slot
from .onnx_pools import normalized, pool
from .onnx_rotary import rotated

IDS, MASK = INPUTS[:2]
EMBEDDED = "embeddings"
"""Placeholder for embeddings that are not written yet: mixing may fold its keys into them."""


@dataclass(eq=False)
class OnnxOps:
    """`Ops` that write to a `GraphBuilder`. Values are names of values of the graph."""

    encoder: Encoder
    build: GraphBuilder
    mask: str = MASK
    """The current attention mask: the mask of single rows or of mixed rows."""
    pending: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Linear maps that are not written yet: a factor may be folded into them."""
    narrow: set[str] = field(default_factory=set)
    """Names of values at the first position only."""
    pooled: str = ""
    """The states that the head reads."""
    shared: dict[object, str] = field(default_factory=dict)
    """Biases and rotary angles. All layers share them."""

    def embed(self) -> str:
        """See `Ops.embed`."""
        if self._mixes_first:
            return EMBEDDED
        x = look_up(self.build, self.encoder)
        if self.encoder.last_attention >= 0:
            self._padding()
        return x

    @property
    def _mixes_first(self) -> bool:
        return self.encoder.mux is not None and self.encoder.mux.at == 0

    def linear(self, name: str, x: str) -> str:
        """See `Ops.linear`."""
        self.pending[name] = (name, self._use(x))
        if x in self.narrow:
            self.narrow.add(name)
        return name

    def norm(self, name: str, x: str, *, centred: bool = True) -> str:
        """See `Ops.norm`."""
        if centred:
            return self.build.norm(name, self._use(x), self.encoder.norm_eps)
        return self.build.rms_norm(name, self._use(x), self.encoder.norm_eps)

    def activation(self, kind: str, x: str) -> str:
        """See `Ops.activation`."""
        at = x.rpartition(".")[0]
        return activate(self.build, kind, at, self._use(x))

    def multiply(self, x: str, y: str) -> str:
        """See `Ops.multiply`."""
        return self.build.op("Mul", f"{x}.product", self._use(x), self._use(y))

    def attention(
        self,
        branch: Branch,
        query: str,
        key: str,
        value: str,
        *,
        rotary: Rotary | None = None,
        relative: Relative | None = None,
        disentangled: Disentangled | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> str:
        """See `Ops.attention`."""
        at, b, e = branch.name, self.build, self.encoder
        heads = e.layers[branch.index].heads
        root = math.sqrt(e.head_dim) if scale is None else 1 / scale
        first = query in self.narrow
        as_rows = rotary is not None or disentangled is not None
        turned = (0, 2, 1, 3) if as_rows else (0, 2, 3, 1)
        q = self._split(branch, "query", query, factor=1 / root if b.low else 1.0)
        k = self._split(branch, "key", key, turned)  # [B, H, K, T]
        v = self._split(branch, "value", value)
        if rotary is not None:
            angles = self._angles(rotary)
            if not first:  # the angle at position 0 is 0
                q = rotated(b, e.head_dim, f"{at}.query", q, rotary, angles)
            k = rotated(b, e.head_dim, f"{at}.key", k, rotary, angles)
        terms = []
        if disentangled is not None:
            added = DistanceTerms(b, e, disentangled, self.mask, first, self.shared)
            terms = added.products(branch, q, k, 1 / root if b.low else 1.0)
        if as_rows:
            k = b.op("Transpose", f"{at}.key.turned", k, perm=(0, 1, 3, 2))
        scores = b.op("MatMul", f"{at}.scores", q, k)
        for term in terms:
            scores = b.op("Add", f"{term}.sum", scores, term)
        if not b.low:
            scores = b.op("Div", f"{at}.scaled", scores, b.number(root))
        scores = self._biased(at, scores, relative, window, q=q, first=first)
        share = b.op("Softmax", f"{at}.share", scores, axis=-1)
        y = b.op("MatMul", f"{at}.context", share, v)
        y = b.op("Transpose", f"{at}.rows", y, perm=(0, 2, 1, 3))
        return self._joined(f"{at}.joined", y, heads * e.head_dim, first)

    def _joined(self, name: str, x: str, width: int, first: bool) -> str:
        """Join the contexts of all heads: [B, Tq, H, K] to [B, Tq, H*K], in the layout."""
        del first
        return self.build.op("Reshape", name, x, self.build.integers(0, 0, width))

    def _padded(self, x: str) -> str:
        """Convert a value of all positions to [B, T, width]. Here it has this shape."""
        return x

    def _biased(
        self,
        at: str,
        scores: str,
        relative: Relative | None,
        window: int | None,
        *,
        q: str,
        first: bool,
    ) -> str:
        """Add the biases of distances, of a window and of padding to scores."""
        b = self.build
        if relative is not None:
            scores = b.op("Add", f"{at}.biased", scores, self._relative(relative, q, first))
        bias = self._padding()
        if window is not None:
            bias = self._windowed(bias, window, q, first)
        return b.op("Add", f"{at}.masked", scores, bias)

    def gate(self, branch: Branch, units: str) -> str:
        """See `Ops.gate`. A graph has no masks."""
        del branch
        return units

    def write(self, branch: Branch, inner: str, x: str) -> str:
        """See `Ops.write`."""
        # y comes first: fusion takes the first Add as the block. In ELECTRA x is an Add, too.
        y = self._use(self.linear(branch.output, inner))
        return self.build.op("Add", f"{branch.name}.residual", y, self._use(x))

    def first(self, x: str) -> str:
        """See `Ops.first`."""
        name = f"{x}.first"
        if name not in self.shared:
            self.shared[name] = self.build.first(name, self._use(x))
        self.narrow.add(name)
        return name

    def pool(self, x: str) -> str:
        """See `Ops.pool`."""
        self.pooled = self._use(x)
        return pool(self.build, self.encoder, self.pooled, MASK)

    def normalize(self, x: str) -> str:
        """See `Ops.normalize`."""
        return normalized(self.build, self._use(x))

    def mix(self, x: str) -> str:
        """See `Ops.mix`."""
        b, n = self.build, self.encoder.slots
        masks = self._slot_masks(n)
        self.mask = b.op("Max", "mux.mask", *masks)
        real = []
        for i, mask in enumerate(masks):
            wide = self._wide(f"mux.{i}", mask)
            real.append(b.op("Cast", f"mux.{i}.real", wide, to=b.element))
        total = b.op("Max", "mux.members", b.op("Sum", "mux.real", *real), b.number(1.0))
        parts = []
        for i in range(n):
            share = b.op("Div", f"mux.{i}.share", real[i], total)
            parts.append(b.op("Mul", f"mux.{i}", self._keyed(x, i), share))
        self.shared.clear()
        x = b.op("Sum", "mux", *parts)
        self._padding()
        return x

    @property
    def _mixes_narrow(self) -> bool:
        """True if rows are mixed when only the first position, a real token, is left."""
        e = self.encoder
        return e.mux is not None and e.mux.at > e.narrow_from

    def _wide(self, at: str, mask: str) -> str:
        """The mask of a slot's rows, [B/n, T, 1] or [B/n, 1, 1]."""
        b = self.build
        wide = b.op("Unsqueeze", f"{at}.wide", mask, b.integers(2))
        return b.first(f"{at}.first", wide) if self._mixes_narrow else wide

    def unmix(self, x: str) -> str:
        """See `Ops.unmix`: [B/n, D] to [B, D], or [B/n, T, D] to [B/n, n, T, D]."""
        b, e = self.build, self.encoder
        assert e.mux is not None
        x = self._use(x) if e.reads_first else self._padded(self._use(x))
        x = b.op("Unsqueeze", "demux.slots", x, b.integers(1))
        shape = (e.slots, e.hidden) if e.reads_first else (e.slots, 1, e.hidden)
        scale, shift = (
            b.floats(name, b.weights[name].reshape(shape))
            for name in ("demux.scale", "demux.shift")
        )
        x = b.op("Mul", "demux.scaled", x, scale)
        x = self._apart(b.op("Add", "demux.shifted", x, shift))
        for i in range(e.mux.demux):
            at = f"demux.{i}"
            inner = self.activation("gelu", self.linear(f"{at}.up", x))
            y = self._use(self.linear(f"{at}.down", inner))
            x = self.norm(f"{at}.norm", b.op("Add", f"{at}.residual", y, x))
        return x

    def _apart(self, x: str) -> str:
        """Reshape to single rows: [B, D] if the head reads the first position.

        If not, the shape is [B, T, D] for pooled models, and stays [B/n, n, T, D] for other
        models.
        """
        e = self.encoder
        if e.reads_first:
            return self.build.op("Reshape", "demux.rows", x, self.build.integers(-1, e.hidden))
        return self._single_rows("demux.rows", x, e.hidden) if e.pooled else x

    def result(self, x: str, name: str) -> None:
        """Make the logits the graph's output: float32, a row for every input row."""
        b = self.build
        x = self._use(x)
        if not self.encoder.pooled:
            x = self._of_positions(x)
        if b.low:
            b.op("Cast", "head.float", x, to=TensorProto.FLOAT)
        b.nodes[-1].output[0] = name

    def _of_positions(self, x: str) -> str:
        """Logits of every position: [B, T, C], reshaped from [B/n, n, T, C] if mixed."""
        return self._single_rows("rows", x, self.encoder.labels) if self.encoder.mux else x

    def _single_rows(self, name: str, x: str, width: int) -> str:
        """Reshape [B/n, n, T, W] to [B, T, W]."""
        b = self.build
        shape = b.op("Shape", f"{name}.shape", IDS)
        shape = b.op("Concat", f"{name}.sizes", shape, b.integers(width), axis=0)
        return b.op("Reshape", name, x, shape)

    def _use(self, x: str) -> str:
        """Write a pending value, and return its name."""
        if x not in self.pending:
            return x
        name, source = self.pending.pop(x)
        return self.build.linear(name, source)

    def _split(
        self,
        branch: Branch,
        part: str,
        x: str,
        perm: tuple[int, ...] = (0, 2, 1, 3),
        *,
        factor: float = 1.0,
    ) -> str:
        """Split [B, T, H*K] into heads, [B, H, T, K] or by `perm`, times a factor."""
        b, at, e = self.build, f"{branch.name}.{part}", self.encoder
        narrow = x in self.narrow
        if factor != 1 and x in self.pending:
            name, source = self.pending.pop(x)
            x = b.linear(name, source, factor=factor)
        elif factor != 1:
            x = b.op("Mul", f"{at}.factor", x, b.number(factor))
        shape = b.integers(0, 0, e.layers[branch.index].heads, e.head_dim)
        x = self._use(x) if narrow else self._padded(self._use(x))
        y = b.op("Reshape", f"{at}.split", x, shape)
        return b.op("Transpose", f"{at}.heads", y, perm=perm)

    def _padding(self) -> str:
        """0 at real positions and a very low float at padding, [B, 1, 1, T]."""
        if "padding" not in self.shared:
            b, at = self.build, "" if self.mask == MASK else "mux."
            x = b.op("Unsqueeze", f"{at}mask.heads", self.mask, b.integers(1))
            x = b.op("Unsqueeze", f"{at}mask.queries", x, b.integers(2))
            x = b.op("Cast", f"{at}mask.float", x, to=b.element)
            x = b.op("Sub", f"{at}mask.padding", b.number(1.0), x)
            self.shared["padding"] = b.op("Mul", f"{at}mask.bias", x, b.number(b.lowest))
        return self.shared["padding"]

    def _positions(self, axis: int, of: str, at: str) -> str:
        """int64 numbers 0, 1, ... along an axis of a value."""
        b = self.build
        shape = b.op("Shape", f"{at}.shape", of)
        length = b.op("Gather", f"{at}.length", shape, b.integer(axis))
        return b.op("Range", f"{at}.range", b.integer(0), length, b.integer(1))

    def _distances(self, q: str, first: bool) -> str:
        """Key position minus query position, int64 [Tq, T]; q is [B, H, Tq, K]."""
        key = ("distances", first)
        if key not in self.shared:
            b, at = self.build, f"distance.{self.mask}.{first}"
            queries = self._positions(2, q, f"{at}.query")
            keys = self._positions(1, self.mask, f"{at}.key")
            column = b.op("Unsqueeze", f"{at}.column", queries, b.integers(1))
            self.shared[key] = b.op("Sub", at, keys, column)
        return self.shared[key]

    def _windowed(self, bias: str, window: int, q: str, first: bool) -> str:
        """The minimum of the biases of padding and window. Their sum would overflow."""
        key = ("window", window, first)
        if key not in self.shared:
            b, at = self.build, f"window.{window}.{first}.{self.mask}"
            far = b.op("Abs", f"{at}.distance", self._distances(q, first))
            far = b.op("Greater", f"{at}.far", far, b.integer(window))
            far = b.op("Cast", f"{at}.float", far, to=b.element)
            far = b.op("Mul", f"{at}.bias", far, b.number(b.lowest))
            self.shared[key] = b.op("Min", at, bias, far)
        return self.shared[key]

    def _relative(self, of: Relative, q: str, first: bool) -> str:
        """Table entry for every distance, [1, H, Tq, T]. Equal tables are stored once."""
        b = self.build
        table = b.weights[f"{of.table}.weight"][torch.as_tensor(of.buckets)]
        key = ("relative", table.numpy().tobytes(), first)
        if key not in self.shared:
            at = of.table
            middle = b.integer(len(of.buckets) // 2)
            index = b.op("Add", f"{at}.index", self._distances(q, first), middle)
            rows = b.op("Gather", f"{at}.rows", b.floats(f"{at}.distances", table), index)
            rows = b.op("Transpose", f"{at}.heads", rows, perm=(2, 0, 1))
            self.shared[key] = b.op("Unsqueeze", at, rows, b.integers(0))
        return self.shared[key]

    def _angles(self, rotary: Rotary) -> tuple[str, str]:
        """Cosines and sines of the angles of every position, [T, K/2], in float32."""
        keys = [(rotary, part) for part in ("Cos", "Sin")]
        if keys[0] not in self.shared:
            b, at = self.build, f"rotary.{rotary.base:g}.{self.mask}"
            place = self._positions(1, self.mask, at)
            place = b.op("Cast", f"{at}.float", place, to=TensorProto.FLOAT)
            place = b.op("Unsqueeze", f"{at}.column", place, b.integers(1))
            size = self.encoder.head_dim
            powers = np.arange(0, size, 2, dtype=np.float32) / size
            values = (1.0 / rotary.base**powers).astype(np.float32)
            rates = b.constant(f"rotary.{rotary.base:g}.rates", values)
            angle = b.op("Mul", f"{at}.angle", place, rates)
            for key in keys:
                found = b.op(key[1], f"{at}.{key[1].lower()}", angle)
                if b.low:
                    found = b.op("Cast", f"{found}.low", found, to=b.element)
                self.shared[key] = found
        return self.shared[keys[0]], self.shared[keys[1]]

    def _slot_masks(self, n: int) -> list[str]:
        """The attention masks of each slot's rows, [B/n, T].

        Masks are reshaped, not sliced: then a number of rows that is no multiple of n is an
        error. Slices of unequal size would give a wrong number of answers.
        """
        b = self.build
        turned = b.op("Transpose", "mux.mask.turned", MASK, perm=[1, 0])
        name = f"rows_must_be_a_multiple_of_{n}"  # the engine's error message has this name
        groups = b.op("Reshape", name, turned, b.integers(0, -1, n))
        slots = b.op("Transpose", "mux.mask.slots", groups, perm=[2, 1, 0])
        return [b.op("Gather", f"mux.{i}.mask", slots, b.integer(i), axis=0) for i in range(n)]

    def _keyed(self, x: str, i: int) -> str:
        """The states of slot i's rows times its key, [B/n, T, D]."""
        b, key = self.build, self.build.weights["mux.keys"][i]
        if x == EMBEDDED:
            return look_up_slot(b, self.encoder, i, key)
        part = b.slot(f"mux.{i}.rows", self._use(x), i, self.encoder.slots)
        return b.op("Mul", f"mux.{i}.keyed", part, b.floats(f"mux.{i}.key", key))
