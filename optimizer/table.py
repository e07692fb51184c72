"""What each branch costs on the target, measured in whole models at the serving point.

Models of the same depth are timed with every branch of one kind at one size, so that a branch
is timed where it will run, caches and all:

    t_attention(h) = (T(h heads, all FFN) - T(0 heads, all FFN)) / layers

and likewise for FFN widths; what remains with all branches gone is the base. Sizes between the
measured ones are interpolated linearly. A block narrowed by `pool-early` has its own curve.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .context import Context
from .environment import device, versions
from .errors import MissingError
from .ir import Encoder, Layer, Masks, Model, expected_shapes
from .measure import interleave
from .store import key

SHARES = (0.0, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
ROUNDS = 5


@dataclass(frozen=True)
class Curve:
    """Milliseconds by size; `sizes` rise from 0."""

    sizes: tuple[int, ...]
    ms: tuple[float, ...]

    def at(self, size: int) -> float:
        """Linear between the measured sizes; size 0 costs nothing."""
        return float(np.interp(size, self.sizes, self.ms)) if size else 0.0


@dataclass(frozen=True)
class CostTable:
    """Milliseconds of one pass over the workload."""

    dense_ms: float
    """The dense model as it was given, without pool-early."""
    base_ms: float
    """Embeddings, head and what the engine spends anyway."""
    attention: tuple[Curve, ...]
    ffn: tuple[Curve, ...]

    def attention_ms(self, layer: int, heads: int) -> float:
        """One attention block."""
        return self.attention[layer].at(heads)

    def ffn_ms(self, layer: int, units: int) -> float:
        """One FFN block."""
        return self.ffn[layer].at(units)

    def predict_ms(self, encoder: Encoder) -> float:
        """A whole model of these sizes."""
        parts = (
            self.attention_ms(i, x.heads) + self.ffn_ms(i, x.ffn)
            for i, x in enumerate(encoder.layers)
        )
        return self.base_ms + sum(parts)


def cost_table(model: Model, ctx: Context) -> CostTable:
    """The table of the model's full sizes on `ctx.target`, measured once and kept.

    Raises:
        MissingError: there is no target to measure on.
    """
    if ctx.target is None:
        raise MissingError("a measured speed-up needs a target; use sparsity= in place of it")
    dense = ctx.dense.encoder
    most = Layer(max(x.heads for x in dense.layers), max(x.ffn for x in dense.layers))
    full = replace(model.encoder, layers=(most,) * len(dense.layers))
    shapes = [b.input_ids.shape for b in ctx.workload]
    # repr, because the short text of an encoder leaves most of its fields out
    name = "table-" + key(
        repr(full), repr(dense), ctx.target, ctx.threads, shapes, device(), versions()
    )
    return _from_json(ctx.cache.json(name, lambda: asdict(_measure(full, ctx))))


def random_model(encoder: Encoder, ctx: Context) -> Model:
    """A model of these sizes with small random weights: time depends on sizes only."""
    random = torch.Generator().manual_seed(ctx.seed)
    weights = {
        name: torch.randn(shape, generator=random) * 0.02
        for name, shape in expected_shapes(encoder).items()
    }
    return Model(encoder, weights, ctx.dense.task, Masks.full(encoder))


def time_ms(encoders: Sequence[Encoder], ctx: Context, rounds: int = ROUNDS) -> list[float]:
    """Median time of the workload for each encoder, interleaved, on the target."""
    if ctx.target is None:
        raise MissingError("timing needs a target")
    inputs = [batch.inputs() for batch in ctx.workload]
    with tempfile.TemporaryDirectory() as folder:
        runs = []
        for i, encoder in enumerate(encoders):
            place = Path(folder) / str(i)
            ctx.target.draft().emit(random_model(encoder, ctx), ctx, place)
            engine = ctx.target.engine(place, ctx.threads)
            runs.append(lambda engine=engine: [engine.run(x) for x in inputs])
        with ctx.progress.task("timing shapes", rounds) as step:
            timings = interleave(runs, rounds, tick=step)
    return [t.median_ms for t in timings]


def _measure(full: Encoder, ctx: Context) -> CostTable:
    """Times uniform models; where the last block is narrow, it is varied on its own."""
    groups = _groups(full)
    encoders = [ctx.dense.encoder, full]
    points: list[tuple[int, str, int]] = []
    for g, layers in enumerate(groups):
        for kind, most in (("heads", full.layers[0].heads), ("ffn", full.layers[0].ffn)):
            # A narrow block that went whole would make the block before it the narrow one.
            least = 1 if g and kind == "heads" else 0
            shares = {max(least, round(share * most)) for share in SHARES[:-1]}
            for size in sorted({min(1, most), *shares}):
                points.append((g, kind, size))
                encoders.append(_resized(full, layers, kind, size))
    times = time_ms(encoders, ctx)
    dense_ms, full_ms, rest = times[0], times[1], times[2:]
    curves = {
        (g, kind): _curve(
            [(p[2], t) for p, t in zip(points, rest, strict=True) if p[:2] == (g, kind)],
            (getattr(full.layers[0], kind), full_ms),
            len(layers),
        )
        for g, layers in enumerate(groups)
        for kind in ("heads", "ffn")
    }
    where = {layer: g for g, layers in enumerate(groups) for layer in layers}
    attention = tuple(curves[where[i], "heads"] for i in range(len(full.layers)))
    ffn = tuple(curves[where[i], "ffn"] for i in range(len(full.layers)))
    spent = sum(a.ms[-1] + f.ms[-1] for a, f in zip(attention, ffn, strict=True))
    return CostTable(dense_ms, max(0.0, full_ms - spent), attention, ffn)


def _groups(full: Encoder) -> list[list[int]]:
    layers = list(range(len(full.layers)))
    if full.pool_early and len(layers) > 1:
        return [layers[:-1], layers[-1:]]
    return [layers]


def _resized(full: Encoder, layers: Sequence[int], kind: str, size: int) -> Encoder:
    changed: list[Layer] = list(full.layers)
    for i in layers:
        changed[i] = replace(changed[i], **{kind: size})
    return replace(full, layers=tuple(changed))


def _curve(found: list[tuple[int, float]], full: tuple[int, float], layers: int) -> Curve:
    """Per-block cost over that of a block that is gone, never falling with size."""
    sizes, times = zip(*found, full, strict=True)
    rising = np.maximum.accumulate(np.maximum(0.0, (np.array(times) - times[0]) / layers))
    return Curve(sizes=tuple(sizes), ms=tuple(float(x) for x in rising))


def _from_json(found: Mapping[str, Any]) -> CostTable:
    def curve(x: Mapping[str, Any]) -> Curve:
        return Curve(tuple(x["sizes"]), tuple(x["ms"]))

    return CostTable(
        found["dense_ms"],
        found["base_ms"],
        tuple(curve(x) for x in found["attention"]),
        tuple(curve(x) for x in found["ffn"]),
    )
