"""The options of every branch, with counted or measured costs, and the choice among them.

With `pool-early`, the last layer with attention and all later layers run at the pooled
position only. If the choice removes the last attention block, another layer becomes the last
one with attention, and costs change. So the choice is made twice. The second choice keeps the
last attention layer of the first choice. Without this rule, the second choice would trade all
later attention for FFN units that cost almost nothing, because importance is measured for
single units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

from prumux.optimizer.model.cost import block_weights, unit_macs, unit_weights
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Branch, BranchKind, Encoder
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.timing.cost_table import CostTable

from .allocate import BranchOptions, allocate

GRID = 16
"""Step of FFN widths if cost is a measured time. The cost table has no smaller step."""

BranchImportance = Sequence[tuple[float, ...]]
"""Importance of 0, 1, ... kept units of each branch: all attention, then all FFN."""
BranchCost = Callable[[Encoder, int], Callable[[int], float]]
"""Takes the encoder and a layer; returns the cost as a function of the number of units."""


def choose_counts(
    model: Model,
    importance: BranchImportance,
    costs: tuple[BranchCost, BranchCost],
    limit: float,
    grid: int = 1,
) -> list[int]:
    """Choose how many units each branch keeps.

    The total importance is as large as the cost limit allows. The list has all attention
    branches, then all FFN branches.

    Args:
        model: the model to prune. Units that its masks remove stay removed.
        importance: importance of every count of every branch.
        costs: cost functions of attention branches and of FFN branches.
        limit: the largest cost of all branches together, in the unit of `costs`.
        grid: FFN widths are multiples of this, or the full width.

    Raises:
        ValueError: the model exceeds the limit even without any heads and FFN units. The
            message has both numbers.
    """
    half = len(model.encoder.layers)
    counts = allocate(_options(model, importance, costs, grid, half), limit)
    living = [i for i, mask in enumerate(model.masks.heads) if bool(mask.any())]
    if not model.encoder.pool_early or not living:
        return counts
    # Layers after the last attention block are cheap: the limit allows more units elsewhere.
    last = max((i for i in range(half) if counts[i]), default=living[-1])
    return allocate(_options(model, importance, costs, grid, last), limit)


def counted_costs(
    ctx: Context, of: Literal["weights", "macs"]
) -> tuple[BranchCost, BranchCost]:
    """Cost functions of attention and FFN branches, in weights or multiply-adds."""
    length = ctx.length

    def cost(kind: BranchKind) -> BranchCost:
        def of_layer(e: Encoder, i: int) -> Callable[[int], float]:
            branch = Branch(i, kind)
            if of == "macs":
                unit, block = unit_macs(e, branch, length), 0
            else:
                unit, block = unit_weights(e, branch), block_weights(e, branch)
            return lambda n: n * unit + block * (n > 0)

        return of_layer

    return cost("attention"), cost("ffn")


def measured_costs(table: CostTable) -> tuple[BranchCost, BranchCost]:
    """Cost functions of attention and FFN branches, in measured milliseconds."""

    def at(e: Encoder) -> CostTable:
        return replace(table, narrow_from=e.narrow_from)

    return (
        lambda e, i: partial(at(e).attention_ms, i),
        lambda e, i: partial(at(e).ffn_ms, i),
    )


def _options(
    model: Model,
    importance: BranchImportance,
    costs: tuple[BranchCost, BranchCost],
    grid: int,
    last: int,
) -> list[BranchOptions]:
    """The options of all branches. Layer `last` keeps attention; later layers have none.

    If `last` is the number of layers, every layer may keep or lose its attention.
    """
    cut = model.masks.sizes(model.encoder)  # hidden dimensions may be masked already
    layers = tuple(
        replace(x, heads=x.heads if i <= last else 0)
        for i, x in enumerate(model.encoder.layers)
    )
    view = replace(model.encoder, hidden=cut.hidden, embedding=cut.embedding, layers=layers)
    half, (attention, ffn) = len(layers), costs
    found = [
        _branch(v, range(i == last, len(v) if i <= last else 1), attention, view, i)
        for i, v in enumerate(importance[:half])
    ]
    for i, v in enumerate(importance[half:]):
        found.append(_branch(v, _widths(len(v), grid), ffn, view, i))
    return found


def _widths(counts: int, grid: int) -> tuple[int, ...]:
    return (*range(0, counts - 1, grid), counts - 1)


def _branch(
    values: Sequence[float],
    counts: Sequence[int],
    cost: BranchCost,
    encoder: Encoder,
    layer: int,
) -> BranchOptions:
    of_units = cost(encoder, layer)
    costs = tuple(float(of_units(n)) for n in counts)
    return BranchOptions(tuple(counts), tuple(values[n] for n in counts), costs)
