"""The options of every branch, with counted or measured costs, and the choice among them.

With `pool-early` the last layer that attends and all after it run at the pooled position only.
Where the choice drops the last attention block, another layer becomes that layer and costs
change. So the choice is made twice, the second time with that layer fixed as the last. Summed
importance may not move it again: importance is of single units, and would trade all later
attention for FFN units that cost almost nothing.
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
"""Step of FFN widths under a measured time: the cost table is not finer."""

BranchImportance = Sequence[tuple[float, ...]]
"""Per branch, all attention then all FFN: the importance that 0, 1, ... kept units have."""
BranchCost = Callable[[Encoder, int], Callable[[int], float]]
"""Takes the encoder and a layer; returns a branch's cost as a function of its kept units."""


def choose_counts(
    model: Model,
    importance: BranchImportance,
    costs: tuple[BranchCost, BranchCost],
    limit: float,
    grid: int = 1,
) -> list[int]:
    """Counts per branch of greatest importance within the limit, all attention then all FFN.

    Args:
        model: the model to prune; its masks say which units are left.
        importance: of every count of every branch.
        costs: of an attention branch and of an FFN branch.
        limit: the largest cost of all branches together, in the unit of `costs`.
        grid: FFN widths are multiples of this, or the full width.

    Raises:
        ValueError: nothing fits the limit; the message has both numbers.
    """
    half = len(model.encoder.layers)
    counts = allocate(_options(model, importance, costs, grid, half), limit)
    living = [i for i, mask in enumerate(model.masks.heads) if bool(mask.any())]
    if not model.encoder.pool_early or not living:
        return counts
    # Layers after the last attention are cheap, so the limit allows more units elsewhere.
    last = max((i for i in range(half) if counts[i]), default=living[-1])
    return allocate(_options(model, importance, costs, grid, last), limit)


def counted_costs(
    ctx: Context, of: Literal["weights", "macs"]
) -> tuple[BranchCost, BranchCost]:
    """Costs of attention and FFN branches, in weights or multiply-adds."""
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
    """Costs of attention and FFN branches, in measured milliseconds."""

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
    """The options of all branches; layer `last` attends and no layer after it does.

    With `last` past the last layer any layer may attend, and costs are those of the model.
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
