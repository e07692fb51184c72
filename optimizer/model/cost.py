"""The counted cost of a model: parameters, bytes and multiply-adds.

`CountOps` counts the operators of the forward pass. Measured costs are in
`timing/cost_table.py`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from math import prod
from typing import Literal

from . import forward
from .families.registry import family_of
from .model import Model
from .ops import Disentangled, Relative, Rotary
from .sizes import Branch, Encoder, Layer
from .weights import branch_parameters, expected_shapes


@dataclass(frozen=True)
class Cost:
    """Counts of one model. Multiply-adds are for one row of `length` real tokens."""

    parameters: int
    encoder_parameters: int
    """Parameters without embeddings and head. `sparsity` is a share of this number."""
    macs: int
    size_bytes: int
    mux_parameters: int
    """Parameters of multiplexer and demultiplexer. `parameters` includes them."""
    mux_macs: int
    """Multiply-adds of multiplexer and demultiplexer. `macs` includes them."""

    def to_json(self) -> dict[str, int]:
        """Field names and values."""
        return asdict(self)


@dataclass(frozen=True)
class Extent:
    """A value between the operators of `CountOps`: number of positions, and width."""

    positions: int
    width: int


@dataclass
class CountOps:
    """`Ops` that counts the multiply-adds of one row of `length` tokens.

    Linear maps, attention and multiplexing are counted. Norms, activations and sums are not.
    """

    encoder: Encoder
    length: int
    macs: int = 0
    mux_macs: int = field(default=0)

    def __post_init__(self) -> None:
        self.shapes = expected_shapes(self.encoder)

    def embed(self) -> Extent:
        """See `Ops.embed`."""
        declared = family_of(self.encoder).embeddings(self.encoder)
        x = Extent(self.length, self.encoder.embedding)
        return self.linear(declared.project, x) if declared.project else x

    def linear(self, name: str, x: Extent) -> Extent:
        """See `Ops.linear`."""
        out, into = self.shapes[f"{name}.weight"]
        self.macs += x.positions * out * into
        return Extent(x.positions, out)

    def norm(self, name: str, x: Extent, *, centred: bool = True) -> Extent:
        """See `Ops.norm`."""
        del name, centred
        return x

    def activation(self, kind: str, x: Extent) -> Extent:
        """See `Ops.activation`."""
        del kind
        return x

    def multiply(self, x: Extent, y: Extent) -> Extent:
        """See `Ops.multiply`."""
        del y
        return x

    def attention(
        self,
        branch: Branch,
        query: Extent,
        key: Extent,
        value: Extent,
        *,
        rotary: Rotary | None = None,
        relative: Relative | None = None,
        disentangled: Disentangled | None = None,
        window: int | None = None,
        scale: float | None = None,
    ) -> Extent:
        """See `Ops.attention`. Scores are counted for all positions, even with a window.

        In disentangled attention, queries and keys are also multiplied with the vectors of
        all distances. There are twice as many distances as positions, or as many if only the
        first position is computed.
        """
        del branch, rotary, relative, window, scale
        self.macs += query.positions * key.positions * (query.width + value.width)
        if disentangled is not None:
            terms = (disentangled.key is not None) + (disentangled.query is not None)
            sides = 1 if query.positions == 1 else 2
            self.macs += terms * query.positions * sides * key.positions * query.width
        return Extent(query.positions, value.width)

    def gate(self, branch: Branch, units: Extent) -> Extent:
        """See `Ops.gate`."""
        del branch
        return units

    def write(self, branch: Branch, inner: Extent, x: Extent) -> Extent:
        """See `Ops.write`."""
        del x
        return self.linear(branch.output, inner)

    def first(self, x: Extent) -> Extent:
        """See `Ops.first`."""
        return replace(x, positions=1)

    def pool(self, x: Extent) -> Extent:
        """See `Ops.pool`."""
        if not self.encoder.pooled:
            return x
        if self.encoder.pooling == "mean_sqrt":  # the only work of a bag of embeddings
            self.macs += x.positions * x.width
        return Extent(1, x.width * len(self.encoder.pools))

    def normalize(self, x: Extent) -> Extent:
        """See `Ops.normalize`."""
        return x

    def mix(self, x: Extent) -> Extent:
        """See `Ops.mix`. Every state is multiplied once by its key."""
        self._count_mux(x.positions * x.width)
        return x

    def unmix(self, x: Extent) -> Extent:
        """See `Ops.unmix`."""
        mux = self.encoder.mux
        assert mux is not None
        self._count_mux(x.positions * x.width * (1 + 2 * mux.demux * x.width))
        return x

    def _count_mux(self, macs: int) -> None:
        self.macs += macs
        self.mux_macs += macs


def count(encoder: Encoder, length: int) -> Cost:
    """Count an encoder's parameters, bytes in float32, and multiply-adds at `length`."""
    sizes = {name: prod(shape) for name, shape in expected_shapes(encoder).items()}
    parameters = sum(sizes.values())
    mux = {k: v for k, v in sizes.items() if k.startswith(("mux.", "demux."))}
    # Branches are added below: each row pays only a share of a branch that runs on mixed rows.
    ops = CountOps(encoder, length)
    forward.answer(ops, _outside_branches(ops))
    return Cost(
        parameters=parameters,
        encoder_parameters=sum(v for k, v in sizes.items() if k.startswith("layers.")),
        macs=ops.macs + branch_cost(encoder, length, "macs"),
        size_bytes=4 * parameters,
        mux_parameters=sum(mux.values()),
        mux_macs=ops.mux_macs,
    )


def count_model(model: Model, length: int) -> Cost:
    """Count a model without its masked units, and with its second stage if it has one.

    Multiply-adds are the mean per row: the first stage's, plus the share of deferred rows
    times the second stage's. Computing margins and gathering rows is not counted.
    """
    first = count(model.masks.sizes(model.encoder), length)
    if model.second is None:
        return first
    other, share = count_model(model.second.model, length), model.second.cost_share
    sums = {
        k: value + asdict(other)[k]
        for k, value in asdict(first).items()
        if k not in ("macs", "mux_macs")
    }
    return Cost(**sums, macs=first.macs + round(share * other.macs), mux_macs=first.mux_macs)


@lru_cache(maxsize=4096)
def unit_macs(encoder: Encoder, branch: Branch, length: int) -> int:
    """Multiply-adds of one head or FFN unit of a branch, per row."""
    rows = 1 if branch.index >= encoder.narrow_from else length
    return unit_macs_at(encoder, branch, rows, length) // sharing(encoder, branch.index)


@lru_cache(maxsize=4096)
def unit_macs_at(encoder: Encoder, branch: Branch, rows: int, length: int) -> int:
    """`unit_macs` for a branch at `rows` of `length` positions, without multiplexing."""
    ops = CountOps(_one_unit(encoder), length)
    x = Extent(length, encoder.hidden)
    units = forward.inner(ops, branch, x, narrow=rows < length)
    ops.write(branch, units, replace(x, positions=rows))
    return ops.macs


def sharing(encoder: Encoder, index: int) -> int:
    """Number of rows that share one forward pass of a layer."""
    return encoder.slots if encoder.mux and index >= encoder.mux.at else 1


def branch_cost(encoder: Encoder, length: int, of: Literal["weights", "macs"]) -> int:
    """Cost of all layers, in weights or multiply-adds per row. Sparsity is a share of it."""
    if of == "weights":
        shapes = expected_shapes(encoder).items()
        return sum(prod(shape) for name, shape in shapes if name.startswith("layers."))
    branches = encoder.branches()
    return sum(encoder.units(x) * unit_macs(encoder, x, length) for x in branches)


@lru_cache(maxsize=4096)
def unit_weights(encoder: Encoder, branch: Branch) -> int:
    """Number of weights of one head (query, key, value, output) or FFN unit, with biases."""
    return branch_parameters(_one_unit(encoder), branch)[0]


@lru_cache(maxsize=4096)
def block_weights(encoder: Encoder, branch: Branch) -> int:
    """Number of weights of a branch that do not depend on its width: output bias and norm."""
    return branch_parameters(_one_unit(encoder), branch)[1]


def _one_unit(encoder: Encoder) -> Encoder:
    """The sizes with one unit per branch. All branches run at all positions of one row."""
    layers = (Layer(1, 1),) * len(encoder.layers)
    return replace(encoder, layers=layers, pool_early=False, mux=None)


def _outside_branches(ops: CountOps) -> Extent:
    """Count the embeddings and the mixing of rows. The result is the embeddings' extent."""
    e = ops.encoder
    x = ops.embed()
    if e.mux is None:
        return x
    ops.mix(ops.first(x) if e.mux.at > e.narrow_from else x)
    return x
