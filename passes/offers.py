"""What every branch offers for its cost, counted or measured; `allocate` chooses among them.

With `pool-early` a block's cost depends on which layer is the last that attends: it and all
after it run at the pooled position only. So the choice is made once for every layer that could
be the last one, and the best is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

from prumux.optimizer.context import Context
from prumux.optimizer.cost import (
    block_weights,
    count,
    ffn_macs,
    ffn_weights,
    head_macs,
    head_weights,
)
from prumux.optimizer.ir import Encoder, Model
from prumux.optimizer.table import CostTable

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
    found: list[tuple[float, list[int]]] = []
    failed: ValueError | None = None
    for offers in _views(model, worth, prices, grid):
        try:
            counts = allocate(offers, limit)
        except ValueError as error:
            failed = error
            continue
        found.append((sum(v[n] for v, n in zip(worth, counts, strict=True)), counts))
    if not found:
        raise failed or ValueError("there is no branch to keep")
    return max(found, key=lambda x: x[0])[1]


def counted(ctx: Context, of: Literal["weights", "macs"]) -> tuple[Price, Price]:
    """Prices in weights or multiply-adds."""
    length = ctx.length
    if of == "macs":
        return (
            lambda e, i, n: n * head_macs(e, i, length),
            lambda e, i, n: n * ffn_macs(e, i, length),
        )
    return (
        lambda e, _, n: n * head_weights(e) + block_weights(e) * (n > 0),
        lambda e, _, n: n * ffn_weights(e) + block_weights(e) * (n > 0),
    )


def dense_cost(ctx: Context, of: Literal["weights", "macs"]) -> float:
    """What the dense model's branches cost, in the same unit."""
    dense, length = ctx.dense.encoder, ctx.length
    if of == "weights":
        return count(dense, length).encoder_parameters
    return sum(
        x.heads * head_macs(dense, i, length) + x.ffn * ffn_macs(dense, i, length)
        for i, x in enumerate(dense.layers)
    )


def timed(table: CostTable) -> tuple[Price, Price]:
    """Prices in measured milliseconds."""

    def at(e: Encoder) -> CostTable:
        early = e.pool_early and e.last_attention >= 0
        return replace(table, narrow_from=e.last_attention if early else len(e.layers))

    return (
        lambda e, i, n: at(e).attention_ms(i, n),
        lambda e, i, n: at(e).ffn_ms(i, n),
    )


def _views(
    model: Model, worth: Worth, prices: tuple[Price, Price], grid: int
) -> Iterator[list[Offer]]:
    """The offers for every layer that may be the last to attend."""
    head, unit = prices
    cut = model.masks.sizes(model.encoder)  # hidden dimensions may be masked already
    encoder = replace(model.encoder, hidden=cut.hidden, embedding=cut.embedding)
    half = len(encoder.layers)
    attention, others = list(enumerate(worth[:half])), list(enumerate(worth[half:]))
    living = [i for i, mask in enumerate(model.masks.heads) if bool(mask.any())]
    for last in living if encoder.pool_early and living else [half]:
        kept = tuple(
            replace(x, heads=x.heads if i <= last else 0) for i, x in enumerate(encoder.layers)
        )
        view = replace(encoder, layers=kept)
        heads = [_offer(v, _heads(i, last, len(v)), head, view, i) for i, v in attention]
        ffn = [_offer(v, _widths(len(v), grid), unit, view, i) for i, v in others]
        yield [*heads, *ffn]


def _heads(layer: int, last: int, counts: int) -> range:
    """Counts that make `last` the last layer that attends."""
    return range(layer == last, counts if layer <= last else 1)


def _widths(counts: int, grid: int) -> tuple[int, ...]:
    return (*range(0, counts - 1, grid), counts - 1)


def _offer(
    value: Sequence[float], counts: Sequence[int], price: Price, encoder: Encoder, layer: int
) -> Offer:
    costs = tuple(float(price(encoder, layer, n)) for n in counts)
    return Offer(tuple(counts), tuple(value[n] for n in counts), costs)
