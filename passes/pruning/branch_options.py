"""What every branch offers for its cost, counted or measured; `allocate` chooses among them.

With `pool-early` the last layer that attends and all after it run at the pooled position
only. Where the choice drops the last attention block, another layer becomes that layer, costs
change, and the choice is made again with that layer as the last. Which layer that should be is
not left to the summed worth: worth is of units taken one by one, and would trade all later
attention for FFN units that cost next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from prumux.optimizer.model.cost import block_weights, unit_macs, unit_weights
from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.sizes import Branch, BranchKind, Encoder
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.timing.cost_table import CostTable

from .allocate import Offer, allocate

GRID = 16
"""FFN widths tried under a measured time: the table is not finer than this."""

Worth = Sequence[tuple[float, ...]]
"""Per branch, all attention then all FFN, what keeping 0, 1, ... units is worth."""
Price = Callable[[Encoder, int, int], float]
"""Cost of a branch, from the encoder, the layer and how many units are kept."""


def choose(
    model: Model, worth: Worth, prices: tuple[Price, Price], limit: float, grid: int = 1
) -> list[int]:
    """Counts per branch of greatest worth within the limit, all attention then all FFN.

    Args:
        model: what is pruned; its masks say what is left.
        worth: of every count of every branch.
        prices: of attention and of FFN branches.
        limit: the most that all branches may cost.
        grid: FFN widths are multiples of this, or the full width.

    Raises:
        ValueError: nothing fits the limit; the message has both numbers.
    """
    half = len(model.encoder.layers)
    counts = allocate(_offers(model, worth, prices, grid, half), limit)
    living = [i for i, mask in enumerate(model.masks.heads) if bool(mask.any())]
    if not model.encoder.pool_early or not living:
        return counts
    # What comes after the last attention is cheap, so there is more to be had for the rest.
    last = max((i for i in range(half) if counts[i]), default=living[-1])
    return allocate(_offers(model, worth, prices, grid, last), limit)


def counted(ctx: Context, of: Literal["weights", "macs"]) -> tuple[Price, Price]:
    """Prices in weights or multiply-adds."""
    length = ctx.length

    def price(kind: BranchKind) -> Price:
        if of == "macs":
            return lambda e, i, n: n * unit_macs(e, Branch(i, kind), length)

        def weights(e: Encoder, i: int, n: int) -> float:
            branch = Branch(i, kind)
            return n * unit_weights(e, branch) + block_weights(e, branch) * (n > 0)

        return weights

    return price("attention"), price("ffn")


def timed(table: CostTable) -> tuple[Price, Price]:
    """Prices in measured milliseconds."""

    def at(e: Encoder) -> CostTable:
        return replace(table, narrow_from=e.narrow_from)

    return (
        lambda e, i, n: at(e).attention_ms(i, n),
        lambda e, i, n: at(e).ffn_ms(i, n),
    )


def _offers(
    model: Model, worth: Worth, prices: tuple[Price, Price], grid: int, last: int
) -> list[Offer]:
    """The offers of all branches; `last` attends and no layer after it does.

    With `last` past the last layer there is no such bound, and prices are as things stand.
    """
    cut = model.masks.sizes(model.encoder)  # hidden dimensions may be masked already
    layers = tuple(
        replace(x, heads=x.heads if i <= last else 0)
        for i, x in enumerate(model.encoder.layers)
    )
    view = replace(model.encoder, hidden=cut.hidden, embedding=cut.embedding, layers=layers)
    half, (head, unit) = len(layers), prices
    heads = [
        _offer(v, range(i == last, len(v) if i <= last else 1), head, view, i)
        for i, v in enumerate(worth[:half])
    ]
    ffn = [_offer(v, _widths(len(v), grid), unit, view, i) for i, v in enumerate(worth[half:])]
    return heads + ffn


def _widths(counts: int, grid: int) -> tuple[int, ...]:
    return (*range(0, counts - 1, grid), counts - 1)


def _offer(
    value: Sequence[float], counts: Sequence[int], price: Price, encoder: Encoder, layer: int
) -> Offer:
    costs = tuple(float(price(encoder, layer, n)) for n in counts)
    return Offer(tuple(counts), tuple(value[n] for n in counts), costs)
