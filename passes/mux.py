"""Lets n rows share one forward pass from a layer on (data multiplexing)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model import ir
from prumux.optimizer.model.ir import Keys, Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.multiplexing.initial_weights import added_weights, slot_keys
from prumux.passes.multiplexing.widen import side_by_side


@dataclass(frozen=True)
class Mux(Pass):
    """Mix n rows into one before layer `at`, take them apart before the head.

    The mixed state is the mean over members of x_i * k_i, element by element, with a key k_i
    for each slot; see `optimizer/module.py`. Train it with `warm-up` and `distill`: with
    shared units it knows how to treat the first slot, at best. With a copy for each slot, side
    by side, it begins with almost the answers of single rows, and costs n times as much as
    those: prune before.

    Where rows are mixed already, by the same n, keys and demux, this moves the mixing to an
    earlier layer and keeps what was learnt: late mixing is learnt sooner.
    """

    name: ClassVar[str] = "mux"
    n: int = field(metadata={"help": "rows that share a forward pass; 1 = every row its own"})
    at: int = field(
        default=0, metadata={"help": "layer before which rows are mixed; 0 = the embeddings"}
    )
    variant: Keys = field(
        default="learned",
        metadata={
            "help": "keys: learned from random signs; fixed or orthogonal Gaussian ones"
        },
    )
    demux: int = field(default=1, metadata={"help": "hidden layers that take rows apart"})
    units: Literal["shared", "apart"] = field(
        default="shared",
        metadata={
            "help": "heads, FFN units and hidden dimensions that run on mixed rows: the same "
            "for all slots, or (apart) a copy for each, side by side"
        },
    )

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("at", 0), ("demux", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")

    @property
    def slots(self) -> int:
        """See `n`."""
        return self.n

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Two, five and ten rows, mixed half-way or at the embeddings."""
        half = len(model.encoder.layers) // 2
        return [cls(n=n, at=at) for n in (2, 5, 10) for at in sorted({half, 0})[::-1]]

    def requires(self, model: Model) -> None:
        """Rows are mixed once, before a layer that there is, and never later than before."""
        e = model.encoder
        if e.mux is not None and not self._moves(model, e.mux):
            raise PassError(
                f"the model mixes {e.mux.n} rows before layer {e.mux.at} already; another mux "
                "can only move that to an earlier layer, with the same n, variant and demux "
                "and shared units",
                exit_code=2,
            )
        if self.at >= len(e.layers):
            raise PassError(
                f"at={self.at} is after the last of {len(e.layers)} layers; "
                f"use mux{{n={self.n} at={len(e.layers) // 2}}} or less",
                exit_code=2,
            )
        if self.units == "apart" and self.n > 1:
            self._check_apart(model)
        if self.variant == "orthogonal" and self.n > e.hidden:
            raise PassError(
                f"{self.n} orthogonal keys do not fit into {e.hidden} dimensions; "
                f"use mux{{n={self.n}}}",
                exit_code=2,
            )

    def _check_apart(self, model: Model) -> None:
        """Copies have their own keys, and a place of their own from the embeddings on."""
        marked, hidden = int((~model.masks.hidden).sum()), model.encoder.hidden
        apart = f"mux{{n={self.n} units=apart}}"
        for wrong, why, better in (
            (self.variant != "learned", f"has its own keys, not {self.variant} ones", apart),
            (self.at, f"widens every layer, so rows are mixed at 0, not {self.at}", apart),
            (marked, f"copies {hidden} dimensions, {marked} marked to go", f"slice,{apart}"),
        ):
            if wrong:
                raise PassError(f"units=apart {why}; use {better}", exit_code=2)

    def _moves(self, model: Model, given: ir.Mux) -> bool:
        """Whether this moves the mixing to an earlier layer and changes nothing else."""
        wanted = ir.Mux(self.n, given.at, self.variant, self.demux)
        return given == wanted and self.at < given.at and self.units == "shared"

    def run(self, model: Model, ctx: Context) -> Model:
        """The same weights, with new ones for mux and demux; the model itself for n=1."""
        if self.n == 1:
            return model
        random = ctx.generator(self)
        mux = ir.Mux(self.n, self.at, self.variant, self.demux)
        if model.encoder.mux is not None:
            return replace(model, encoder=replace(model.encoder, mux=mux))
        if self.units == "apart":
            return side_by_side(model, mux, random)
        keys = slot_keys(mux, model.encoder.hidden, random)
        encoder = replace(model.encoder, mux=mux)
        added = added_weights(keys, encoder, model, random)
        notes = {"parameters": sum(x.numel() for x in added.values())}
        weights = {**model.weights, **added}
        return replace(model, encoder=encoder, weights=weights, notes=notes)
