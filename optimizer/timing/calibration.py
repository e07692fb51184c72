"""Time models of chosen sizes on the target, as data for the cost table.

The models have random weights, because time depends on sizes only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import Tensor

from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Layer
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context

from .interleave import Timing, interleave

ROUNDS = 5
GROUP = 5
"""Number of engines in memory at once, besides the anchor."""
NEAR = 1.03
"""A group is timed again if its anchor takes more than 1.03 times the anchor's best time."""
AGAIN = 2
"""Number of times that a group is timed again, at most."""
HEAD_SHARES = (1 / 4, 1 / 2, 3 / 4, 1.0)
FFN_SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1.0)
NARROW_SHARES = (1 / 2, 1.0)
MIXED = 10
"""Number of uneven shapes in the plan."""
GONE = 1 / 6
"""Probability that a branch of an uneven shape is empty."""


def time_ms(encoders: Sequence[Encoder], ctx: Context, rounds: int = ROUNDS) -> list[float]:
    """Milliseconds of one pass over the workload for each encoder, on the target.

    The fastest round counts, because disturbances only add time. Encoders are timed in groups
    whose engines take turns. The first encoder is the anchor and is in every group. If the
    anchor is slower than in earlier groups, the group is timed again. The remaining difference
    is divided out, because a slow minute would distort the table.

    Raises:
        MissingError: there is no target.
    """
    if ctx.target is None:
        raise MissingError("timing needs a target")
    pool = _pool(encoders, ctx)
    groups = [encoders[i : i + GROUP] for i in range(1, len(encoders), GROUP)] or [[]]
    found: list[list[float]] = []
    with ctx.progress.task("timing shapes", rounds * len(groups)) as step:
        anchor = _opened(encoders[0], ctx, pool)
        for group in groups:
            best = min((x[0] for x in found), default=math.inf)
            # No variable refers to the list, so its engines are freed before the next group.
            found.append(
                _steady(
                    [anchor, *(_opened(x, ctx, pool) for x in group)], ctx, rounds, best, step
                )
            )
    first = median(group[0] for group in found)
    return [first, *(ms * first / group[0] for group in found for ms in group[1:])]


def measured_speedup(encoder: Encoder, ctx: Context, rounds: int = 2 * ROUNDS) -> float:
    """Speed-up of a model of these sizes over the given model, by the best times of both.

    With `ctx.costs` the speed-up is predicted, and nothing is timed.

    Raises:
        MissingError: there is no target.
    """
    if ctx.costs is not None and ctx.target is not None:
        name = ctx.target.timed_as
        return ctx.costs.estimate(encoder, ctx.dense.encoder, name, name).speedup
    both = (ctx.dense.encoder, encoder)
    pool = _pool(both, ctx)
    with ctx.progress.task("timing the choice", rounds) as step:
        dense, other = _interleaved([_opened(x, ctx, pool) for x in both], ctx, rounds, step)
    return dense.low_ms / other.low_ms


def random_model(encoder: Encoder, ctx: Context, pool: Tensor | None = None) -> Model:
    """A model of these sizes, whose random weights are views of one tensor, `pool`."""
    shapes = expected_shapes(encoder)
    if pool is None:
        pool = _pool([encoder], ctx)
    weights = {name: pool[: int(np.prod(shape))].view(shape) for name, shape in shapes.items()}
    return Model(encoder, weights, ctx.dense.task, Masks.full(encoder))


def knots(most: int, shares: Sequence[float]) -> tuple[int, ...]:
    """The sizes 1 and `shares` x `most`, in rising order; empty if `most` is 0."""
    return tuple(sorted({1, *(max(1, round(s * most)) for s in shares)})) if most else ()


def plan(full: Encoder, seed: int) -> list[Encoder]:
    """Shapes whose times determine the cost of every branch at every knot:

    - the empty model
    - each size of one kind of branch, in all layers, without the other kind
    - with `pool_early`, single blocks at the pooled position
    - the full model
    - uneven shapes, as pruning produces them
    """
    layers, most = len(full.layers), full.layers[0]
    rows: list[list[Layer]] = [[Layer(0, 0)] * layers]
    rows += [[Layer(h, 0)] * layers for h in knots(most.heads, HEAD_SHARES)]
    rows += [[Layer(0, f)] * layers for f in knots(most.ffn, FFN_SHARES)]
    if full.pool_early and most.heads:
        gone = [Layer(0, 0)] * (layers - 1)
        rows += [[*gone, Layer(h, 0)] for h in knots(most.heads, NARROW_SHARES)]
        for f in knots(most.ffn, NARROW_SHARES):
            rows.append([Layer(1, f)] + [Layer(0, f)] * (layers - 1))
    rows.append([most] * layers)
    return [replace(full, layers=tuple(row)) for row in rows] + uneven(full, MIXED, seed)


def uneven(full: Encoder, count: int, seed: int) -> list[Encoder]:
    """Random shapes from full to nearly empty. Sizes differ between layers."""
    rng = np.random.default_rng(seed)

    def size(most: int, density: float) -> int:
        share = min(1.0, rng.uniform(0, 2) * density)
        return 0 if rng.random() < GONE else round(share * most)

    found = []
    for i in range(count):
        # One shape for each interval of densities, so that few shapes cover all densities.
        density = 0.1 + 0.9 * (i + rng.random()) / count
        layers = [Layer(size(x.heads, density), size(x.ffn, density)) for x in full.layers]
        if not any(x.heads or x.ffn for x in layers):
            layers[0] = full.layers[0]  # the plan has the empty model already
        found.append(replace(full, layers=tuple(layers)))
    return found


TimedRun = Callable[[], object]


def _pool(encoders: Sequence[Encoder], ctx: Context) -> Tensor:
    """Random numbers for all weights, as many as the largest weight has elements."""
    most = max(int(np.prod(s)) for x in encoders for s in expected_shapes(x).values())
    return torch.randn(most, generator=torch.Generator().manual_seed(ctx.seed)) * 0.02


def _opened(encoder: Encoder, ctx: Context, pool: Tensor) -> TimedRun:
    """A function that passes the workload through an engine of this shape."""
    if not ctx.may_time:
        raise MissingError("nothing is timed in a worker")
    if ctx.target is None:
        raise MissingError("timing needs a target")
    inputs = [batch.inputs() for batch in ctx.workload]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "engine"
        ctx.target.draft().emit(random_model(encoder, ctx, pool), ctx, place)
        engine = ctx.target.engine(place, ctx.threads)
    return lambda: [engine.run(x) for x in inputs]


def _steady(
    runs: Sequence[TimedRun], ctx: Context, rounds: int, best: float, step: Callable[[], None]
) -> list[float]:
    """Best times of a group, which is timed again if its first run is slower than `best`."""
    times = _timed(runs, ctx, rounds, step)
    for _ in range(AGAIN):
        if times[0] <= NEAR * best:
            break
        times = [min(x) for x in zip(times, _timed(runs, ctx, rounds), strict=True)]
    return times


def _timed(
    runs: Sequence[TimedRun], ctx: Context, rounds: int, step: Callable[[], None] | None = None
) -> list[float]:
    return [timing.low_ms for timing in _interleaved(runs, ctx, rounds, step)]


def _interleaved(
    runs: Sequence[TimedRun], ctx: Context, rounds: int, step: Callable[[], None] | None
) -> tuple[Timing, ...]:
    return interleave(runs, rounds, tick=step, cores=ctx.cores)
