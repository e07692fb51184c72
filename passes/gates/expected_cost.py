"""What a model with random gates is expected to cost.

With p the chance that a gate is open, all independent, a branch of a layer has

    n = p_block * sum p_unit     living units       a = p_block * (1 - prod (1 - p_unit))

with a the chance that it lives at all. Under `pool-early` a layer runs at one position if no
later layer attends, with chance prod (1 - a) over the attention blocks after it.
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

from .gates import Chances


class Budget(Protocol):
    """A cost and how much of it may be spent."""

    @property
    def limit(self) -> float:
        """What may be spent."""

    @property
    def whole(self) -> float:
        """What the dense model costs."""

    def expected(self, chances: Chances) -> Tensor:
        """Mean cost of a model with these gates, a scalar with gradients."""

    def real(self, sizes: Encoder) -> float:
        """Cost of a model of these sizes."""


class Counted:
    """Weights or multiply-adds of the layers; `share` of the dense model's may be spent."""

    def __init__(
        self,
        encoder: Encoder,
        dense: Encoder,
        share: float,
        of: Literal["weights", "macs"],
        length: int,
    ) -> None:
        self.encoder, self.of, self.length = encoder, of, length
        self.whole = self.real(dense)
        self.limit = share * self.whole
        self.units, self.blocks = self._affine(unit_weights), self._affine(block_weights)
        self.wide = self._affine(lambda e, b: unit_macs_at(e, b, length, length))
        self.narrow = self._affine(lambda e, b: unit_macs_at(e, b, 1, length))

    def real(self, sizes: Encoder) -> float:
        """Counted as `prune` counts."""
        return branch_cost(sizes, self.length, self.of)

    def expected(self, chances: Chances) -> Tensor:
        """Exact: all gates are independent."""
        half, d = len(chances.blocks) // 2, chances.hidden.sum()
        n = chances.blocks * torch.stack([p.sum() for p in chances.units])
        if self.of == "weights":
            living = chances.alive() * _at(self.blocks, d)
            return (n * _at(self.units, d)).sum() + living.sum()
        narrow, none = (x * self.encoder.pool_early for x in chances.narrow())
        rows = torch.tensor([sharing(self.encoder, i) for i in range(half)]).to(n)
        share = torch.cat([narrow, narrow - none])  # attention, then FFN
        wide, small = _at(self.wide, d), _at(self.narrow, d)
        return (n / rows.repeat(2) * (wide + share * (small - wide))).sum()

    def _affine(self, of: Callable[[Encoder, Branch], int]) -> Tensor:
        """Prices of every branch, all attention then all FFN: at hidden size 0, and a slope.

        Every price is affine in the hidden size.
        """
        depth = range(len(self.encoder.layers))
        branches = [Branch(i, kind) for kind in KINDS for i in depth]
        none, one = (
            [of(replace(self.encoder, hidden=d), branch) for branch in branches]
            for d in (0, 1)
        )
        found = torch.tensor([none, one], dtype=torch.float64)
        return torch.stack([found[0], found[1] - found[0]])


def _at(prices: Tensor, hidden: Tensor) -> Tensor:
    """Prices at a hidden size that may be fractional."""
    found: Tensor = prices.to(hidden)[0] + prices.to(hidden)[1] * hidden
    return found


@dataclass(frozen=True)
class Timed:
    """Measured milliseconds; the table knows no hidden sizes."""

    table: CostTable
    limit: float
    early: bool
    """Whether the model has `pool_early`."""

    @property
    def whole(self) -> float:
        """The dense model's time."""
        return self.table.dense_ms

    def real(self, sizes: Encoder) -> float:
        """What the table says."""
        return self.table.predict_ms(sizes)

    def expected(self, chances: Chances) -> Tensor:
        """base + sum over branches of p_block * curve(sum p_unit)."""
        half, wide, small = len(chances.blocks) // 2, self.table.wide, self.table.narrow
        narrow, none = chances.narrow()
        total = chances.blocks.new_tensor(self.table.base_ms)
        for i, p in enumerate(chances.units):
            attends, layer = i < half, i % half
            ms = _interpolate(wide.attention if attends else wide.ffn, p.sum())
            if self.early:
                short = _interpolate(small.attention if attends else small.ffn, p.sum())
                # With no attention left there is no block to narrow at.
                share = narrow[layer] if attends else narrow[layer] - none
                ms = ms + share * (short - ms)
            total = total + chances.blocks[i] * ms
        return total


def _interpolate(curve: Curve, size: Tensor) -> Tensor:
    """`curve.at` for a fractional size, with its slope as gradient."""
    at = bisect_left(curve.sizes, float(size.detach()), 1, len(curve.sizes) - 1)
    run = curve.sizes[at] - curve.sizes[at - 1]
    slope = (curve.ms[at] - curve.ms[at - 1]) / run
    return (curve.ms[at - 1] + slope * (size - curve.sizes[at - 1])).clamp_min(0)
