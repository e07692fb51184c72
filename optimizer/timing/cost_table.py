"""The cost table: the time of each branch, fitted to measured times of whole models.

The models are timed on the target at the serving point. A model's time is a sum over its
branches,

    t = base + sum_l a(heads_l) + sum_l f(units_l),

where the curves a and f rise with size and are linear between a few knots. Both curves are 0
at size 0 and jump at size 1, by the fixed cost of a branch with its LayerNorm. Base and knots
are fitted to the times of about thirty models, from the empty one to the full one. The fit
minimises relative errors by non-negative least squares. With `pool_early`, the last attention
block and all blocks after it have curves of their own.

A table is refused if its error on uneven models, which were not in the fit, is above 10 %.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.environment import device, versions
from prumux.optimizer.base.errors import MissingError, PassError
from prumux.optimizer.base.store import key
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Layer
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.costs import Block, CostTable, Curve

from .calibration import (
    FFN_SHARES,
    HEAD_SHARES,
    NARROW_SHARES,
    ROUNDS,
    knots,
    plan,
    time_ms,
    uneven,
)

__all__ = [
    "Block",
    "CostTable",
    "Curve",
    "cost_table",
    "fit",
    "measure_table",
    "table_from_json",
]

CHECKS = 6
LIMIT = 0.10
"""Largest relative error on uneven models that a table may have."""
STRAIGHT = 0.3
"""Weight of the penalty on bends of the curves. `prune` would exploit bends that are noise."""
FLOOR = 0.02
"""Errors are relative to the measured time plus this share of the given model's time.

The share models the precision of the clock."""

Floats = NDArray[np.float64]


def cost_table(model: Model, ctx: Context) -> CostTable:
    """The cost table of the model's full sizes on `ctx.target`.

    The table is measured once on each machine and then cached. With `ctx.costs`, the table
    comes from the costs file, and nothing is measured.

    Raises:
        MissingError: there is no target to measure on.
        PassError: the model is multiplexed, or two measurements both have errors above
            `LIMIT`.
    """
    if ctx.target is None:
        raise MissingError("a measured speed-up needs a target; use sparsity= in place of it")
    if model.encoder.mux:
        raise PassError(
            f"the cost table times single rows, the model mixes {model.encoder.slots}\n"
            "put mux after it, or use sparsity= in place of speedup=",
            exit_code=2,
        )
    dense = ctx.dense.encoder
    most = Layer(max(x.heads for x in dense.layers), max(x.ffn for x in dense.layers))
    left = model.masks.sizes(model.encoder)
    full = replace(left, layers=(most,) * len(dense.layers))
    if ctx.costs is not None:
        found = ctx.costs.table(full, ctx.costs.dense_of(dense), ctx.target.timed_as)
        early = left.reads_first  # no other pooling has narrow curves
        return replace(found, narrow_from=left.narrow_from if early else len(left.layers))
    shapes = [b.input_ids.shape for b in ctx.workload]
    # repr, because the short text of an encoder omits most of its fields
    name = "costs-" + key(
        repr(full), repr(dense), ctx.target, ctx.threads, shapes, device(), versions()
    )
    table = table_from_json(ctx.cache.json(name, lambda: asdict(measure_table(full, ctx))))
    return replace(table, narrow_from=left.narrow_from)


def fit(
    encoders: Sequence[Encoder], times_ms: Sequence[float], dense_ms: float, full: Encoder
) -> CostTable:
    """Fit a table to the times of models, minimising relative errors.

    Args:
        encoders: sizes of the models, with heads and FFN units up to those of `full`.
        times_ms: time of each model.
        dense_ms: time of the given model.
        full: the largest sizes, the same in every layer.
    """
    from scipy.optimize import nnls

    most = full.layers[0]
    wide = knots(most.heads, HEAD_SHARES), knots(most.ffn, FFN_SHARES)
    narrow = knots(most.heads, NARROW_SHARES), knots(most.ffn, NARROW_SHARES)
    if not full.pool_early:
        narrow = (), ()
    rows = np.array([_row(x, wide, narrow) for x in encoders])
    times = np.array(times_ms)
    weights = 1 / (times + FLOOR * dense_ms)
    bends = _bends((*wide, *narrow), len(full.layers) / dense_ms)
    left = np.vstack([rows * weights[:, None], STRAIGHT * bends])
    found, _ = nnls(left, np.concatenate([times * weights, np.zeros(len(bends))]))
    steps = np.split(found[1:], np.cumsum([len(x) for x in (*wide, *narrow)])[:-1])
    curves = [
        Curve((0, *x), (0.0, *np.cumsum(ms).tolist()))
        for x, ms in zip((*wide, *narrow), steps, strict=True)
    ]
    return CostTable(
        dense_ms=dense_ms,
        base_ms=float(found[0]),
        wide=Block(*curves[:2]),
        narrow=Block(*curves[2:]),
        narrow_from=len(full.layers),
        error=0.0,
    )


def _bends(curves: Sequence[tuple[int, ...]], scale: float) -> Floats:
    """Rows of the penalty on bends of the curves, one row for each inner knot above size 1.

    A row gives the change of slope at its knot, times the curve's whole width, in shares of
    the given model's time.
    """
    size, at = 1 + sum(len(x) for x in curves), 1
    found = [np.zeros(size)]
    for knot in curves:
        for j in range(1, len(knot) - 1):
            row = np.zeros(size)
            row[at + j] = -knot[-1] * scale / (knot[j] - knot[j - 1])
            row[at + j + 1] = knot[-1] * scale / (knot[j + 1] - knot[j])
            found.append(row)
        at += len(knot)
    return np.array(found)


def _row(
    encoder: Encoder,
    wide: tuple[tuple[int, ...], tuple[int, ...]],
    narrow: tuple[tuple[int, ...], tuple[int, ...]],
) -> Floats:
    """The row of the least-squares problem for a model: 1 for the base, then `_steps`."""
    first = encoder.narrow_from
    parts = [np.ones(1)]
    for sizes, layers in ((wide, encoder.layers[:first]), (narrow, encoder.layers[first:])):
        parts.append(sum((_steps(x.heads, sizes[0]) for x in layers), np.zeros(len(sizes[0]))))
        parts.append(sum((_steps(x.ffn, sizes[1]) for x in layers), np.zeros(len(sizes[1]))))
    return np.concatenate(parts)


def _steps(size: int, at: tuple[int, ...]) -> Floats:
    """Share, from 0 to 1, of the rise to each knot that a branch of this size costs."""
    if not at:
        return np.zeros(0)
    knot = np.array(at, dtype=np.float64)
    before = np.concatenate([[0.0], knot[:-1]])
    share: Floats = np.clip((size - before) / (knot - before), 0.0, 1.0)
    return share


def measure_table(full: Encoder, ctx: Context, rounds: int = ROUNDS) -> CostTable:
    """Measure a table. If its check fails, measure once more with twice the rounds.

    Raises:
        PassError: the check fails twice.
    """
    first = _measure(full, ctx, rounds)
    if first.error <= LIMIT:
        return first
    again = _measure(full, ctx, 2 * rounds)
    if again.error <= LIMIT:
        return again
    raise PassError(
        f"the cost table is {first.error:.0%} off on uneven models, measured once more "
        f"{again.error:.0%}; {LIMIT:.0%} is the most that is used\n"
        "try again when nothing else runs on this machine, or do without a clock:\n"
        "use sparsity=0.5 of=macs in place of speedup",
        exit_code=4,  # a failed check, as for parity: the request itself is valid
    )


def _measure(full: Encoder, ctx: Context, rounds: int) -> CostTable:
    """Time the models of the plan and of the check, then fit."""
    shapes = plan(full, ctx.seed)
    checks = uneven(full, CHECKS, ctx.seed + 1)
    dense_ms, *times = time_ms([ctx.dense.encoder, *shapes, *checks], ctx, rounds)
    table = fit(shapes, times[: len(shapes)], dense_ms, full)
    pairs = zip(checks, times[len(shapes) :], strict=True)
    return replace(table, error=max(abs(table.predict_ms(x) / ms - 1) for x, ms in pairs))


def table_from_json(found: Mapping[str, Any]) -> CostTable:
    """Build a table from the JSON form of `asdict(table)`."""

    def block(x: Mapping[str, Any]) -> Block:
        curves = (Curve(tuple(x[k]["sizes"]), tuple(x[k]["ms"])) for k in ("attention", "ffn"))
        return Block(*curves)

    return CostTable(
        **{**found, "wide": block(found["wide"]), "narrow": block(found["narrow"])}
    )
