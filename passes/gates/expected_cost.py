"""The expected cost of a model with random gates, and budgets for this cost.

Gates are independent. Let p_unit and p_block be the probabilities that the gates of a unit and
of its block are open. A branch of a layer has

    n = p_block * sum p_unit                    expected number of open units
    a = p_block * (1 - prod (1 - p_unit))       probability that the branch has an open unit

With `pool-early`, a layer runs at a single position if no later layer has an attention block.
The probability of this is prod (1 - a) over the attention blocks of later layers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
from torch import Tensor

from prumux.optimizer.model.cost import (
    block_weights,
    branch_cost,
    sharing,
    unit_macs_at,
    unit_weights,
)
from prumux.optimizer.model.sizes import KINDS, Branch, Encoder
from prumux.optimizer.timing.cost_table import CostTable, Curve

from .gates import OpenProbabilities


class CostBudget(Protocol):
    """A cost function and a limit."""

    @property
    def limit(self) -> float:
        """Largest allowed cost of the result, in the unit of `cost`."""

    @property
    def dense(self) -> float:
        """Cost of the given model."""

    def expected(self, p: OpenProbabilities) -> Tensor:
        """Expected cost of a model with these gates, a scalar with gradients."""

    def cost(self, sizes: Encoder) -> float:
        """Cost of a model of these sizes."""


class CountedBudget:
    """A budget in weights or multiply-adds of the layers: a share of the given model's."""

    def __init__(
        self,
        encoder: Encoder,
        dense: Encoder,
        share: float,
        of: Literal["weights", "macs"],
        length: int,
    ) -> None:
        self.encoder, self.of, self.length = encoder, of, length
        self.dense = self.cost(dense)
        self.limit = share * self.dense
        self.units, self.blocks = self._affine(unit_weights), self._affine(block_weights)
        self.wide = self._affine(lambda e, b: unit_macs_at(e, b, length, length))
        self.narrow = self._affine(lambda e, b: unit_macs_at(e, b, 1, length))

    def cost(self, sizes: Encoder) -> float:
        """Count weights or multiply-adds as `prune` does."""
        return branch_cost(sizes, self.length, self.of)

    def expected(self, p: OpenProbabilities) -> Tensor:
        """Expected count. It is exact, because all gates are independent."""
        half, d = len(p.blocks) // 2, p.hidden.sum()
        n = p.blocks * torch.stack([x.sum() for x in p.units])
        if self.of == "weights":
            living = p.alive() * _at(self.blocks, d)
            return (n * _at(self.units, d)).sum() + living.sum()
        narrow, none = (x * self.encoder.pool_early for x in p.narrow())
        rows = torch.tensor([sharing(self.encoder, i) for i in range(half)]).to(n)
        share = torch.cat([narrow, narrow - none])  # attention, then FFN
        wide, small = _at(self.wide, d), _at(self.narrow, d)
        return (n / rows.repeat(2) * (wide + share * (small - wide))).sum()

    def _affine(self, of: Callable[[Encoder, Branch], int]) -> Tensor:
        """Cost of a unit in each branch, as [value at hidden size 0, slope]; attention first.

        Every unit's cost is affine in the hidden size.
        """
        depth = range(len(self.encoder.layers))
        branches = [Branch(i, kind) for kind in KINDS for i in depth]
        none, one = (
            [of(replace(self.encoder, hidden=d), branch) for branch in branches]
            for d in (0, 1)
        )
        found = torch.tensor([none, one], dtype=torch.float64)
        return torch.stack([found[0], found[1] - found[0]])


def _at(costs: Tensor, hidden: Tensor) -> Tensor:
    """Evaluate affine costs at a hidden size, which may be fractional."""
    found: Tensor = costs.to(hidden)[0] + costs.to(hidden)[1] * hidden
    return found


@dataclass(frozen=True)
class TimedBudget:
    """A budget in measured milliseconds. The cost table has no times of hidden sizes."""

    table: CostTable
    limit: float
    early: bool
    """True if the model has `pool_early`."""

    @property
    def dense(self) -> float:
        """The given model's time, ms."""
        return self.table.dense_ms

    def cost(self, sizes: Encoder) -> float:
        """The time that the cost table predicts, ms."""
        return self.table.predict_ms(sizes)

    def expected(self, p: OpenProbabilities) -> Tensor:
        """Expected time in ms: base + sum over branches of p_block * curve(sum p_unit)."""
        half, wide, small = len(p.blocks) // 2, self.table.wide, self.table.narrow
        narrow, none = p.narrow()
        total = p.blocks.new_tensor(self.table.base_ms)
        for i, units in enumerate(p.units):
            attends, layer = i < half, i % half
            ms = _interpolate(wide.attention if attends else wide.ffn, units.sum())
            if self.early:
                short = _interpolate(small.attention if attends else small.ffn, units.sum())
                # If no attention is left at all, an FFN runs at all positions.
                share = narrow[layer] if attends else narrow[layer] - none
                ms = ms + share * (short - ms)
            total = total + p.blocks[i] * ms
        return total


def _interpolate(curve: Curve, size: Tensor) -> Tensor:
    """Time at a fractional size, by linear interpolation. The gradient is the slope."""
    at = bisect_left(curve.sizes, float(size.detach()), 1, len(curve.sizes) - 1)
    run = curve.sizes[at] - curve.sizes[at - 1]
    slope = (curve.ms[at] - curve.ms[at - 1]) / run
    return (curve.ms[at - 1] + slope * (size - curve.sizes[at - 1])).clamp_min(0)
