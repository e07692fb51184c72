"""Initial gates before training, and binary masks after training.

The binary masks keep the expected number of units, and are then corrected: units are removed
or restored until the real cost meets the budget.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor, nn

from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.sizes import Encoder
from prumux.passes.pruning.importance import Scores

from .expected_cost import CostBudget
from .gates import Gates
from .hard_concrete import HIGH, keep_expected, open_probability

START = 2.0
"""Initial log_alpha of the least important unit; the most important unit has `HIGH`.
A gate is open with probability 0.97 at this value, so almost nothing is removed at first."""


def initial_gates(
    encoder: Encoder, budget: CostBudget, scores: Scores, blocks: bool, hidden: bool
) -> Gates:
    """Gates that are almost surely open. Units are ranked by importance over cost.

    Args:
        encoder: the sizes.
        budget: the cost of a unit is the derivative of the budget's expected cost.
        scores: importance of every unit.
        blocks: True if whole blocks get gates.
        hidden: True if hidden dimensions get gates.
    """
    score = torch.cat([*scores.heads, *scores.ffn])
    layers, dims = encoder.layers, encoder.hidden
    widths = (*(x.heads for x in layers), *(x.ffn for x in layers))
    units = nn.Parameter(torch.full_like(score, HIGH))
    open_units = Gates(widths, dims, units, None, None).probabilities()
    (cost,) = torch.autograd.grad(budget.expected(open_units), units)
    # The derivative is 0 if a measured time is flat. Such units get a small cost.
    value = score / cost.clamp_min(1e-3 * float(cost.mean()))
    rank = value.argsort().argsort() / max(1, len(value) - 1)
    return Gates(
        widths,
        dims,
        nn.Parameter(START + (HIGH - START) * rank),
        nn.Parameter(torch.full((len(widths),), HIGH)) if blocks else None,
        nn.Parameter(torch.full((dims,), HIGH)) if hidden else None,
    )


def final_masks(gates: Gates, budget: CostBudget, encoder: Encoder) -> Masks:
    """Masks with the expected number of units, corrected to as many as the budget allows.

    Units are ordered by the probability that the gates of the unit and of its block are open.
    The least probable unit is removed first. The most probable units are restored first: units
    of kept blocks, then units of all other blocks. In the end, one more unit in any branch
    would exceed the budget.
    """
    rank, kept, living, dims = _expected(gates)
    half = len(gates.widths) // 2
    branch = gates.spread(torch.arange(len(gates.widths)))
    order = rank.argsort(descending=True, stable=True)

    def masks(units: Tensor) -> Masks:
        parts = gates.branches(units)
        return Masks(parts[:half], parts[half:], dims)

    def fits(units: Tensor) -> bool:
        return budget.cost(masks(units).sizes(encoder)) <= budget.limit

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
            # No other unit of this branch fits either; other branches may be cheaper.
            left = pool[least:]
            pool = left[branch[left] != branch[left[:1]]]
    return masks(kept)


def _expected(gates: Gates) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log probability of units; masks of kept units, units of kept blocks, hidden sizes."""
    with torch.no_grad():
        rank = open_probability(gates.units).log().cpu()
        parts = [keep_expected(x) for x in gates.branches(gates.units)]
        kept = torch.cat(parts).cpu()
        living = torch.ones_like(kept)
        if gates.blocks is not None:
            half = len(gates.widths) // 2
            rank = rank + gates.spread(open_probability(gates.blocks).log()).cpu()
            blocks = [keep_expected(x) for x in torch.split(gates.blocks, half)]
            living = gates.spread(torch.cat(blocks)).cpu()
        dims = torch.ones(gates.dims, dtype=torch.bool)
        if gates.hidden is not None:
            dims = keep_expected(gates.hidden).cpu()
            dims[int(gates.hidden.argmax())] = True
        return rank, kept & living, living, dims
