"""Lets n rows share one forward pass from a layer on (data multiplexing)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from prumux.optimizer import ir
from prumux.optimizer.context import Context
from prumux.optimizer.errors import PassError
from prumux.optimizer.ir import Encoder, Keys, Model, expected_shapes
from prumux.optimizer.module import EncoderModule
from prumux.optimizer.passbase import Pass

INITIAL_STD = 0.02


@dataclass(frozen=True)
class Mux(Pass):
    """Mix n rows into one before layer `at`, take them apart before the head.

    The mixed state is the mean over members of x_i * k_i, element by element, with a key k_i
    for each slot; see `optimizer/module.py`. The result knows nothing yet: train it with
    `warm-up` and `distill`.

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

    def __post_init__(self) -> None:
        for name, least in (("n", 1), ("at", 0), ("demux", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, not {getattr(self, name)}")

    @property
    def mixes(self) -> int:
        """See `n`."""
        return self.n

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Two, five and ten rows, mixed at the embeddings or half-way."""
        half = len(model.encoder.layers) // 2
        return [cls(n=n, at=at) for n in (2, 5, 10) for at in sorted({0, half})]

    def requires(self, model: Model) -> None:
        """Rows are mixed once, before a layer that there is, and never later than before."""
        e = model.encoder
        wanted = ir.Mux(self.n, self.at, self.variant, self.demux)
        if e.mux is not None and (replace(e.mux, at=self.at) != wanted or self.at >= e.mux.at):
            raise PassError(
                f"the model mixes {e.mux.n} rows before layer {e.mux.at} already; another mux "
                "can only move that to an earlier layer, with the same n, variant and demux",
                exit_code=2,
            )
        if self.at >= len(e.layers):
            raise PassError(
                f"at={self.at} is after the last of {len(e.layers)} layers; "
                f"use mux{{n={self.n} at={len(e.layers) // 2}}} or less",
                exit_code=2,
            )
        if self.variant == "orthogonal" and self.n > e.hidden:
            raise PassError(
                f"{self.n} orthogonal keys do not fit into {e.hidden} dimensions; "
                f"use mux{{n={self.n}}}",
                exit_code=2,
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """The same weights, with new ones for mux and demux; the model itself for n=1."""
        if self.n == 1:
            return model
        random = ctx.generator(self)
        mux = ir.Mux(self.n, self.at, self.variant, self.demux)
        encoder = replace(model.encoder, mux=mux)
        if model.encoder.mux is not None:
            return replace(model, encoder=encoder)
        names = (k for k in expected_shapes(encoder) if k.startswith(("mux.", "demux.")))
        keys = _keys(mux, encoder.hidden, random)
        added = {name: _initial(name, keys, encoder, model, random) for name in names}
        notes = {"parameters": sum(x.numel() for x in added.values())}
        weights = {**model.weights, **added}
        return replace(model, encoder=encoder, weights=weights, notes=notes)


def _keys(mux: ir.Mux, hidden: int, random: torch.Generator) -> Tensor:
    """Keys [n, D] of mean square 1."""
    drawn = torch.randn(mux.n, hidden, generator=random)
    if mux.variant == "fixed":
        return drawn
    if mux.variant == "orthogonal":
        columns, _ = torch.linalg.qr(drawn.T)
        found: Tensor = columns.T.contiguous() * hidden**0.5
        return found
    signs = torch.where(drawn < 0, -1.0, 1.0)
    signs[0] = 1.0  # so that the first slot starts from what the layers know
    return signs


def _initial(
    name: str, keys: Tensor, encoder: Encoder, model: Model, random: torch.Generator
) -> Tensor:
    """Demultiplexing starts as multiplying by the key once more, which undoes a sign."""
    if name in ("mux.keys", "demux.scale"):
        return keys.clone()
    shape = expected_shapes(encoder)[name]
    if ".norm." in name:
        last = model.weights[_last_norm(model) + name.rpartition(".")[2]]
        return last.clone() if tuple(last.shape) == shape else torch.ones(shape)
    if len(shape) == 1 or name == "demux.shift":
        return torch.zeros(shape)
    return torch.randn(shape, generator=random) * INITIAL_STD


def _last_norm(model: Model) -> str:
    """The prefix of the LayerNorm whose output the head was trained on."""
    living = EncoderModule(model).branches()
    return f"{living[-1].name}.norm." if living else "embeddings.norm."
