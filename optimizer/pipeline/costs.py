"""A model's milliseconds, predicted as a sum of the measured costs of its branches.

`timing/cost_table.py` fits a `CostTable` on this machine. `timing/cost_file.py` writes and
reads `Costs`, which may come from another machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from prumux.optimizer.base.errors import PassError, UsageError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Multiplexing

UNTIMED = {
    *("vocab", "positions", "token_types", "labels", "norm_eps", "pad_id", "positions_from"),
    *("pool_early", "mux"),
}
"""Sizes that hardly change times, and `pool_early` and `mux`, which have their own curves."""
TIMED_FIELDS = tuple(x.name for x in fields(Encoder) if x.name not in UNTIMED)
"""Sizes that times depend on."""


@dataclass(frozen=True)
class Curve:
    """Milliseconds at several sizes. `sizes` are in rising order and start at 0."""

    sizes: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, size: int) -> float:
        """Milliseconds at a size, linear between the knots. Size 0 costs nothing."""
        return float(np.interp(size, self.sizes, self.ms)) if size else 0.0


@dataclass(frozen=True)
class Block:
    """The costs of a layer's two branches."""

    attention: Curve
    ffn: Curve


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of one pass over the workload."""

    dense_ms: float
    """Milliseconds of the given model, without pool-early."""
    base_ms: float
    """Milliseconds of embeddings, head and the engine's own overhead."""
    wide: Block
    """Costs of a layer that runs at every position."""
    narrow: Block
    """Costs of a layer that runs at the pooled position only."""
    narrow_from: int
    """Index of the first layer with the costs `narrow`; the number of layers if there is none.

    With pool-early this is the last layer with attention heads."""
    error: float
    """Largest relative error on the uneven models that check the table."""

    def attention_ms(self, layer: int, heads: int) -> float:
        """Milliseconds of a layer's attention block."""
        return self.block(layer, self.narrow_from).attention.at(heads)

    def ffn_ms(self, layer: int, units: int) -> float:
        """Milliseconds of a layer's FFN block."""
        return self.block(layer, self.narrow_from).ffn.at(units)

    def predict_ms(self, encoder: Encoder) -> float:
        """Milliseconds of a whole model of these sizes.

        `encoder` determines which layers are narrow. In contrast, `attention_ms` and `ffn_ms`
        use `narrow_from`, which belongs to the model for which the table was made.
        """
        first = encoder.narrow_from
        blocks = (self.block(i, first) for i in range(len(encoder.layers)))
        parts = (
            block.attention.at(x.heads) + block.ffn.at(x.ffn)
            for block, x in zip(blocks, encoder.layers, strict=True)
        )
        return self.base_ms + sum(parts)

    def limit_ms(self, speedup: float, name: str) -> float:
        """Milliseconds that a model with this speed-up over the given model may take.

        Raises:
            PassError: embeddings and head alone take longer. The message names the pass
                `name`.
        """
        limit = self.dense_ms / speedup
        if limit < self.base_ms:
            most = int(10 * self.dense_ms / self.base_ms) / 10
            raise PassError(
                f"{name}{{speedup={speedup:g}}} leaves {limit:.3g} of {self.dense_ms:.3g} ms, "
                f"embeddings and head alone take {self.base_ms:.3g} ms\n"
                f"ask for {name}{{speedup={most:g}}} or less",
                exit_code=2,
            )
        return limit

    def block(self, layer: int, first: int) -> Block:
        """The curves of a layer. Layers from `first` on are narrow."""
        return self.narrow if layer >= first else self.wide


@dataclass(frozen=True)
class TargetCosts:
    """Times on one target of a machine."""

    single: CostTable
    """The table of models without multiplexing. It includes the curves of pool-early."""
    mixed: Mapping[int, CostTable]
    """Tables of models that mix rows at the embeddings, by the number of mixed rows."""
    engine: Mapping[str, str]
    """Facts of the engine: library, version, device, threads, precision."""

    @property
    def error(self) -> float:
        """Largest relative error of a table on models that were not in its fit."""
        return max(x.error for x in (self.single, *self.mixed.values()))

    def predict_ms(self, encoder: Encoder) -> float:
        """Milliseconds of a whole model. Layers before the mixing have costs of single rows.

        Raises:
            PassError: this kind of multiplexing was not measured.
        """
        mux = encoder.mux
        if mux is None:
            return self.single.predict_ms(encoder)
        if mux != Multiplexing(mux.n, mux.at) or mux.n not in self.mixed:
            known = ", ".join(f"mux{{n={n}}}" for n in sorted(self.mixed)) or "none"
            raise PassError(
                f"the costs hold no times of {_mix_text(mux)}, they hold {known}\n"
                f"measure them: prumux-bench --measure-costs FILE MODEL --mix {mux.n}",
                exit_code=2,
            )
        table, first = self.mixed[mux.n], encoder.narrow_from
        total = table.base_ms
        for i, layer in enumerate(encoder.layers):
            block = (self.single if i < mux.at else table).block(i, first)
            total += block.attention.at(layer.heads) + block.ffn.at(layer.ffn)
        return total


@dataclass(frozen=True)
class Estimate:
    """Predicted milliseconds of a batch."""

    dense_ms: float
    ms: float

    @property
    def speedup(self) -> float:
        """Speed-up of the model over the given model."""
        return self.dense_ms / self.ms


@dataclass(frozen=True)
class Costs:
    """Times of the serving machine, from a costs file that any machine can read."""

    path: Path
    digest: str
    """SHA-256 of the file."""
    encoder: Encoder
    """The given model that was measured."""
    batch: int
    length: int
    """Number of tokens of every row."""
    targets: Mapping[str, TargetCosts]
    """Costs of each target, by `Target.timed_as`."""
    machine: Mapping[str, str]
    """The machine that was measured: `cpu`, `gpu`, `cpu_threads`, ..."""
    date: str

    def on(self, target: str) -> TargetCosts:
        """The costs of a target, by its `timed_as`.

        Raises:
            UsageError: the target was not measured.
        """
        if target not in self.targets:
            raise UsageError(
                f"'{self.path}': targets has no {target}, it has {', '.join(self.targets)}\n"
                f"measure it on the serving machine: {self.again} --target '{target}'"
            )
        return self.targets[target]

    def table(self, full: Encoder, dense: Encoder, target: str) -> CostTable:
        """The table of models without mixed rows.

        Args:
            full: sizes of the unpruned model.
            dense: sizes of the given model, whose time becomes `dense_ms`.
            target: see `on`.

        Raises:
            PassError: `full` differs from the measured model.
        """
        self.check_sizes(full)
        found = self.on(target)
        if dense == self.encoder:
            return found.single
        return replace(found.single, dense_ms=found.predict_ms(dense))

    def estimate(
        self, encoder: Encoder, dense: Encoder, target: str, baseline: str
    ) -> Estimate:
        """Predict the times of a model on a target and of the given model on `baseline`.

        Raises:
            PassError: the sizes or the mixing were not measured.
            UsageError: a target was not measured.
        """
        self.check_sizes(encoder)
        first = self.table(dense, self.dense_of(dense), baseline).dense_ms
        return Estimate(first, self.on(target).predict_ms(encoder))

    def estimate_model(
        self, model: Model, dense: Encoder, target: str, baseline: str
    ) -> Estimate:
        """`estimate` for a model that may have a second stage.

        The second stage adds its time for a whole batch, times the share of deferred rows.

        Raises:
            PassError: the sizes or the mixing of a stage were not measured.
            UsageError: a target was not measured.
        """
        found = self.estimate(model.encoder, dense, target, baseline)
        if model.second is None:
            return found
        other = self.estimate(model.second.model.encoder, dense, target, baseline)
        return replace(found, ms=found.ms + model.second.cost_share * other.ms)

    def dense_of(self, encoder: Encoder) -> Encoder:
        """`self.encoder`, whose time was measured, if sizes are equal; else `encoder`."""
        return self.encoder if _timed(encoder) == _timed(self.encoder) else encoder

    def check_sizes(self, encoder: Encoder) -> None:
        """Check that the model differs from the measured one in heads and FFN units only.

        Raises:
            PassError: another size differs.
        """
        wrong = _differing(encoder, self.encoder)
        if wrong:
            mine, theirs = (getattr(x, wrong) for x in (encoder, self.encoder))
            raise PassError(
                f"'{self.path}' holds times of models with {wrong} {theirs}, this candidate "
                f"has {mine}\nleave out what changes it, such as prune-hidden or units=apart",
                exit_code=2,
            )

    def check_model(self, encoder: Encoder) -> None:
        """Check that the given model has the sizes that were measured.

        Raises:
            UsageError: a size differs; the message names the first.
        """
        for name in TIMED_FIELDS:
            mine, theirs = getattr(encoder, name), getattr(self.encoder, name)
            if mine != theirs:
                if name == "layers":
                    mine, theirs = str(encoder), str(self.encoder)
                raise UsageError(
                    f"'{self.path}': model.{name} is {theirs}, the given model has {mine}\n"
                    f"measure this model on the serving machine: {self.again}"
                )

    def describe(self) -> dict[str, Any]:
        """Facts for the report, as JSON values."""
        return {
            "file": self.path.name,
            "digest": self.digest,
            "measured_on": dict(self.machine),
            "date": self.date,
            "targets": list(self.targets),
            "use": "candidates are timed by this file, not on this machine",
        }

    @property
    def again(self) -> str:
        """The command that measures costs at the same serving point."""
        return (
            f"prumux-bench --measure-costs {self.path.name} MODEL --batch {self.batch} "
            f"--length {self.length}"
        )

    @property
    def name(self) -> str:
        """The machine in messages: its GPU, if an engine ran on one, and its processor."""
        parts = [self.machine.get("gpu", ""), self.machine.get("cpu", "")]
        return ", ".join(x for x in parts if x) or "an unknown machine"


def _timed(encoder: Encoder) -> tuple[object, ...]:
    plain = not encoder.pool_early and encoder.mux is None
    return (*(getattr(encoder, name) for name in TIMED_FIELDS), plain)


def _differing(encoder: Encoder, given: Encoder) -> str:
    """The name of the first differing size, without heads and FFN units; "" = none differs."""
    if len(encoder.layers) != len(given.layers):
        return "layers"
    others = (x for x in TIMED_FIELDS if x != "layers")
    return next((x for x in others if getattr(encoder, x) != getattr(given, x)), "")


def _mix_text(mux: Multiplexing) -> str:
    return f"mux{{n={mux.n} variant={mux.variant} demux={mux.demux}}}"
