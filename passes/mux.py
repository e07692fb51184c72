"""`mux`: let n rows share one forward pass from a layer on (data multiplexing).

The method is from DataMUX (Murahari et al., https://arxiv.org/abs/2202.09318) and MUX-PLM
(https://arxiv.org/abs/2302.12441); PruMUX (https://arxiv.org/abs/2305.14706) adds pruning. The
mixed state is the mean of x_i * k_i over the n rows of a group; k_i is the key of slot i, the
place of row i in the group. Before the head, a small network recovers every row's state.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Keys, Multiplexing
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.multiplexing.initial_weights import added_weights, slot_keys
from prumux.passes.multiplexing.widen import side_by_side


@dataclass(frozen=True)
class Mux(Pass):
    """Mix n rows into one before layer `at`, and demultiplex before the head.

    Train the mixed model with `warm-up` and `distill`. With shared units, the untrained
    model's answers are useful in one slot at best. With `units=apart`, the model has a copy of
    all units for each slot. Before training, its answers are then close to its answers to
    single rows, but a forward pass costs more. So prune before this pass.

    A second `mux` with the same n, keys and demux moves the mixing to an earlier layer, and
    keeps the trained weights. First mix late, because late mixing is learnt sooner.

    Example: `mux{n=2 at=3},warm-up{epochs=5},distill{epochs=5}`
    """

    name: ClassVar[str] = "mux"
    n: int = field(metadata={"help": "rows that share a forward pass; 1 = no mixing"})
    at: int = field(
        default=0, metadata={"help": "layer before which rows are mixed; 0 = the embeddings"}
    )
    variant: Keys = field(
        default="learned",
        metadata={
            "help": "keys: random signs that are trained, fixed Gaussian or orthogonal ones"
        },
    )
    demux: int = field(default=1, metadata={"help": "hidden layers of the demultiplexer"})
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
        """The option n."""
        return self.n

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Mix two, five or ten rows, before the middle layer or at the embeddings."""
        if model.encoder.sentence is not None or model.task.finds_spans:
            return []
        half = len(model.encoder.layers) // 2
        return [cls(n=n, at=at) for n in (2, 5, 10) for at in sorted({half, 0})[::-1]]

    def requires(self, model: Model) -> None:
        """Refuse unsupported tasks, an `at` after the last layer, and options that do not fit.

        Also refuse a second mux that does not move the mixing to an earlier layer."""
        e = model.encoder
        if self.n > 1 and e.sentence is not None:
            raise PassError(
                f"mux mixes {self.n} rows: the vector of a text would depend on others, "
                "which is not supported for embedding models\n"
                "leave mux out: prune, reconstruct and distill work on embeddings",
                exit_code=2,
            )
        if self.n > 1 and model.task.finds_spans:
            raise PassError(
                f"mux mixes {self.n} rows: the windows of a question would depend on those of "
                f"others, which is not supported for {model.task.name}\n"
                "leave mux out: prune, reconstruct and distill work on it",
                exit_code=2,
            )
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
        """Refuse options that contradict `units=apart`."""
        marked, hidden = int((~model.masks.hidden).sum()), model.encoder.hidden
        apart = f"mux{{n={self.n} units=apart}}"
        for wrong, why, better in (
            (self.variant != "learned", f"has its own keys, not {self.variant} ones", apart),
            (self.at, f"widens every layer, so rows are mixed at 0, not {self.at}", apart),
            (marked, f"copies {hidden} dimensions, {marked} marked to go", f"slice,{apart}"),
        ):
            if wrong:
                raise PassError(f"units=apart {why}; use {better}", exit_code=2)

    def _moves(self, model: Model, given: Multiplexing) -> bool:
        """True if the pass moves the mixing to an earlier layer and changes nothing else."""
        wanted = Multiplexing(self.n, given.at, self.variant, self.demux)
        return given == wanted and self.at < given.at and self.units == "shared"

    def run(self, model: Model, ctx: Context) -> Model:
        """Add weights for mux and demux; return the model itself for n=1."""
        if self.n == 1:
            return model
        random = ctx.generator(self)
        mux = Multiplexing(self.n, self.at, self.variant, self.demux)
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
