"""The gates of a model: one for every head, FFN unit, block and hidden dimension."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .hard_concrete import HIGH, LOW, binary_sample, open_probability, open_value, sample


@dataclass(frozen=True, eq=False)
class OpenProbabilities:
    """P(z != 0) of every gate; 0 or 1 for fixed gates."""

    units: tuple[Tensor, ...]
    """Probabilities of each branch's units, [H] or [F]: all attention, then all FFN."""
    blocks: Tensor
    """Probabilities of the blocks, [branches]."""
    hidden: Tensor
    """Probabilities of the hidden dimensions, [D]."""

    def alive(self) -> Tensor:
        """Probability that a branch has at least one open unit, [branches]."""
        return self.blocks * torch.stack([1 - (1 - p).prod() for p in self.units])

    def narrow(self) -> tuple[Tensor, Tensor]:
        """P(no later layer attends), [layers], and P(no layer attends), a scalar."""
        gone = 1 - self.alive()[: len(self.blocks) // 2]
        after = gone.flip(0).cumprod(0).flip(0)  # from this layer on
        return torch.cat([after[1:], after.new_ones(1)]), after[0]


@dataclass(frozen=True, eq=False)
class Gates:
    """log_alpha of all gates of a model. Gates that are None are always open."""

    widths: tuple[int, ...]
    """Number of units of every branch: all attention branches, then all FFN."""
    dims: int
    units: nn.Parameter
    """[sum of widths]"""
    blocks: nn.Parameter | None
    """[branches]"""
    hidden: nn.Parameter | None
    """[D]"""

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return [p for p in (self.units, self.blocks, self.hidden) if p is not None]

    def to(self, device: str) -> Gates:
        """Copy the gates to a device, as new parameters."""

        def moved(p: nn.Parameter) -> nn.Parameter:
            return nn.Parameter(p.detach().to(device))

        return Gates(
            self.widths,
            self.dims,
            moved(self.units),
            None if self.blocks is None else moved(self.blocks),
            None if self.hidden is None else moved(self.hidden),
        )

    def clamp(self) -> None:
        """Pull log_alpha back into its bounds, in place."""
        for p in self.parameters:
            p.data.clamp_(LOW, HIGH)

    def probabilities(self) -> OpenProbabilities:
        """P(z != 0) of every gate, with gradients."""
        ones = self.units.new_ones
        return OpenProbabilities(
            units=self.branches(open_probability(self.units)),
            blocks=ones(len(self.widths))
            if self.blocks is None
            else open_probability(self.blocks),
            hidden=ones(self.dims) if self.hidden is None else open_probability(self.hidden),
        )

    def branches(self, units: Tensor) -> tuple[Tensor, ...]:
        """Cut [sum of widths] into one tensor per branch."""
        return torch.split(units, list(self.widths))

    def spread(self, blocks: Tensor) -> Tensor:
        """Repeat every branch's value for its units: [branches] to [sum of widths]."""
        return blocks.repeat_interleave(torch.tensor(self.widths, device=blocks.device))

    def draw(self, random: torch.Generator) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """Sample the gates.

        Returns:
            Factors of the units of each branch, multiplied by their block's factor.
            Binary factors of hidden dimensions, or None without such gates.
        """

        def uniform(p: Tensor) -> Tensor:
            return torch.rand(p.shape, generator=random).to(p.device)

        z = sample(self.units, uniform(self.units))
        if self.blocks is not None:
            z = z * self.spread(sample(self.blocks, uniform(self.blocks)))
        if self.hidden is None:
            return self.branches(z), None
        return self.branches(z), binary_sample(self.hidden, uniform(self.hidden))

    def values(self) -> tuple[Tensor, ...]:
        """E[z | z != 0] of the units of each branch, times E[z | z != 0] of their block."""
        z = open_value(self.units)
        if self.blocks is not None:
            z = z * self.spread(open_value(self.blocks))
        return self.branches(z)
