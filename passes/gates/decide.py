"""How gates start, and which to keep for good: those expected, corrected to the real cost."""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor, nn

from prumux.optimizer.model.ir import Encoder, Masks
from prumux.passes.pruning.importance import Scores

from .expected_cost import Budget
from .gates import Gates
from .hard_concrete import HIGH, chance, keep_expected

START = 2.0
"""log_alpha of the least important unit at the start; the most important one has the highest.
Open with chance 0.97, so the start removes nothing to speak of."""


def start(
    encoder: Encoder, budget: Budget, scores: Scores, blocks: bool, hidden: bool
) -> Gates:
    """Gates that are all but open, units ranked by importance over cost.

    Args:
        encoder: the sizes.
        budget: what a unit costs is the slope of its expected cost.
        scores: importance of every unit.
        blocks: whether whole blocks have gates.
        hidden: whether hidden dimensions have gates.
    """
    score = torch.cat([*scores.heads, *scores.ffn])
    layers, dims = encoder.layers, encoder.hidden
    widths = (*(x.heads for x in layers), *(x.ffn for x in layers))
    units = nn.Parameter(torch.full_like(score, HIGH))
    chances = Gates(widths, dims, units, None, None).chances()
    (price,) = torch.autograd.grad(budget.expected(chances), units)
    # A measured time can be flat; such units are cheap, not free.
    worth = score / price.clamp_min(1e-3 * float(price.mean()))
    rank = worth.argsort().argsort() / max(1, len(worth) - 1)
    return Gates(
        widths,
        dims,
        nn.Parameter(START + (HIGH - START) * rank),
        nn.Parameter(torch.full((len(widths),), HIGH)) if blocks else None,
        nn.Parameter(torch.full((dims,), HIGH)) if hidden else None,
    )


def decide(gates: Gates, budget: Budget, encoder: Encoder) -> Masks:
    """Keep the expected number of each group, then as much as the limit buys, no more.

    Units go, or come back, in the order of their chance to be open, block included; those of
    blocks that are expected to live come back first. In the end no branch can have one more.
    """
    rank, kept, living, dims = _expected(gates)
    half = len(gates.widths) // 2
    branch = gates.spread(torch.arange(len(gates.widths)))
    order = rank.argsort(descending=True, stable=True)

    def masks(units: Tensor) -> Masks:
        parts = gates.branches(units)
        return Masks(parts[:half], parts[half:], dims)

    def fits(units: Tensor) -> bool:
        return budget.real(masks(units).sizes(encoder)) <= budget.limit

    def moved(pool: Tensor, n: int, value: bool) -> Tensor:
        found = kept.clone()
        found[pool[:n]] = value
        return found

    pool = order[kept[order]].flip(0)
    least = bisect_left(range(len(pool)), True, key=lambda n: fits(moved(pool, n, False)))
    kept = moved(pool, least, False)
    for among in (living, torch.ones_like(living)):
        pool = order[(among & ~kept)[order]]
        while len(pool):
            least = bisect_left(
                range(len(pool)), True, key=lambda n: not fits(moved(pool, n + 1, True))
            )
            kept = moved(pool, least, True)
            # What does not fit does not fit from its whole branch; others may be cheaper.
            left = pool[least:]
            pool = left[branch[left] != branch[left[:1]]]
    return masks(kept)


def _expected(gates: Gates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log chance, whether kept, whether the block is kept, per unit; hidden mask [D]."""
    with torch.no_grad():
        rank = chance(gates.units).log().cpu()
        parts = [keep_expected(x) for x in gates.branches(gates.units)]
        kept = torch.cat(parts).cpu()
        living = torch.ones_like(kept)
        if gates.blocks is not None:
            half = len(gates.widths) // 2
            rank = rank + gates.spread(chance(gates.blocks).log()).cpu()
            blocks = [keep_expected(x) for x in torch.split(gates.blocks, half)]
            living = gates.spread(torch.cat(blocks)).cpu()
        dims = torch.ones(gates.dims, dtype=torch.bool)
        if gates.hidden is not None:
            dims = keep_expected(gates.hidden).cpu()
            dims[int(gates.hidden.argmax())] = True
        return rank, kept & living, living, dims
