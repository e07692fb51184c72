"""The counted cost of a model: parameters, bytes and multiply-adds.

`CountOps` reads the forward pass and counts. Measured costs are in `timing/cost_table.py`.
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
    """Counts of one model; multiply-adds are for one row of `length` real tokens."""

    parameters: int
    encoder_parameters: int
    """Without embeddings and head: what `sparsity` counts."""
    macs: int
    size_bytes: int
    mux_parameters: int
    """Of mixing rows and of taking them apart; counted in `parameters` as well."""
    mux_macs: int
    """Likewise, counted in `macs` as well."""

    def to_json(self) -> dict[str, int]:
        """Field names and values."""
        return asdict(self)


@dataclass(frozen=True)
class Extent:
    """A value of `CountOps`: the positions of a row, and a width."""

    positions: int
    width: int


@dataclass
class CountOps:
    """`Ops` that counts the multiply-adds of one row of `length` tokens.

    Linear maps, attention and multiplexing count; norms, activations and sums do not.
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
        """See `Ops.attention`. Scores are computed for all positions, windows or not.

        Queries and keys are compared with the vectors of all distances on both sides, which
        are twice as many as positions, or with one side's for the first position alone.
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
        if self.encoder.pooling == "mean_sqrt":  # a bag of embeddings does nothing else
            self.macs += x.positions * x.width
        return Extent(1, x.width * len(self.encoder.pools))

    def normalize(self, x: Extent) -> Extent:
        """See `Ops.normalize`."""
        return x

    def mix(self, x: Extent) -> Extent:
        """See `Ops.mix`: every state is multiplied by its key once."""
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
    # Branches are added below: those on mixed rows cost each member a share.
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
    """Count a model without its masked units, and with its second stage, if it has one.

    Multiply-adds are those of a row on average: the first stage's, and those of the second
    stage times the share of rows that are deferred. Margins and the gathering of rows are no
    multiply-adds.
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
    """The same for a branch computed at `rows` of `length` positions, of an unshared pass."""
    ops = CountOps(_one_unit(encoder), length)
    x = Extent(length, encoder.hidden)
    units = forward.inner(ops, branch, x, narrow=rows < length)
    ops.write(branch, units, replace(x, positions=rows))
    return ops.macs


def sharing(encoder: Encoder, index: int) -> int:
    """Rows that a layer runs on at once."""
    return encoder.slots if encoder.mux and index >= encoder.mux.at else 1


def branch_cost(encoder: Encoder, length: int, of: Literal["weights", "macs"]) -> int:
    """Cost of all layers, in weights or multiply-adds of a row. Sparsity is a share of it."""
    if of == "weights":
        shapes = expected_shapes(encoder).items()
        return sum(prod(shape) for name, shape in shapes if name.startswith("layers."))
    branches = encoder.branches()
    return sum(encoder.units(x) * unit_macs(encoder, x, length) for x in branches)


@lru_cache(maxsize=4096)
def unit_weights(encoder: Encoder, branch: Branch) -> int:
    """Weights of one head (query, key, value, output) or FFN unit, with biases it owns."""
    return branch_parameters(_one_unit(encoder), branch)[0]


@lru_cache(maxsize=4096)
def block_weights(encoder: Encoder, branch: Branch) -> int:
    """Weights of a branch that lives, whatever its width: output bias and norm."""
    return branch_parameters(_one_unit(encoder), branch)[1]


def _one_unit(encoder: Encoder) -> Encoder:
    """The sizes with one unit in every branch, which all run on every position of a row."""
    layers = (Layer(1, 1),) * len(encoder.layers)
    return replace(encoder, layers=layers, pool_early=False, mux=None)


def _outside_branches(ops: CountOps) -> Extent:
    """Embeddings, and the mixing of rows, where it stands."""
    e = ops.encoder
    x = ops.embed()
    if e.mux is None:
        return x
    ops.mix(ops.first(x) if e.mux.at > e.narrow_from else x)
    return x
