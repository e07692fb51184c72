"""The refit of `reconstruct`: both models run branch by branch, and output maps are moved.

Where the small model mixes rows, its target is the dense states, multiplexed.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.ir import Encoder, Model
from prumux.optimizer.model.module import ACTIVATIONS, Branch, EncoderModule, attention_bias
from prumux.passes.multiplexing.mixed_state_loss import mixed_target

from .least_squares import RidgeRegression

UNREAD_WEIGHT = 0.05
"""Weight of unread positions where the head reads one; stabilises the solution."""
EVERY = slice(None)
"""Every hidden dimension of the dense model."""


class ResidualStreams:
    """The residual streams of the dense and the small model, advanced branch by branch."""

    def __init__(self, dense: Model, small: Model, groups: list[Batch], device: str) -> None:
        self.dense = EncoderModule(replace(dense, encoder=_wide(dense))).to(device).eval()
        copied = {name: tensor.clone() for name, tensor in small.weights.items()}
        self.small = EncoderModule(replace(small, encoder=_wide(small), weights=copied))
        self.small.to(device).eval()
        self.alive = set(self.small.branches())
        hidden = self.small.factors.hidden
        self.left: Tensor | float = 1.0 if hidden is None else hidden
        cut = small.kept_hidden
        self.there = EVERY if cut is None else cut.to(device)
        self.rows = [torch.as_tensor(b.attention_mask).to(device) for b in groups]
        self.masks = self.rows
        """1 where the small model has a token, of mixed rows once it mixes, [B, T]."""
        self.mixes = False
        self.aim: list[Tensor] = []
        self.now: list[Tensor] = []
        for batch in groups:
            inputs = {k: torch.as_tensor(v).to(device) for k, v in batch.inputs().items()}
            ids, types = inputs["input_ids"], inputs.get("token_type_ids")
            self.aim.append(self.dense.embed(ids, types, None))
            self.now.append(self.small.embed(ids, types, hidden))

    def advance(self, branch: Branch, ridge: float) -> float | None:
        """Move both streams past a branch, and refit it where the small model has it.

        Returns:
            The share of the squared error of its output that is left; None without the branch.
        """
        alive, mux = branch in self.alive, self.small.sizes.mux
        first = bool(mux and not self.mixes and alive and branch.index >= mux.at)
        if first:
            self._mix()
        inners, fit = [], RidgeRegression()
        for i, rows in enumerate(self.rows):
            inner = self.dense.inner(branch, self.aim[i], attention_bias(rows))
            y = self.dense.residual(branch, inner, self.aim[i])
            self.aim[i] = self.dense.normalise(branch, y)
            if alive:
                inner = self.small.inner(branch, self.now[i], attention_bias(self.masks[i]))
                wanted = y[..., self.there]
                if self.mixes:
                    wanted = mixed_target(wanted, self.keys, rows.bool(), first)
                missing = wanted - self.small.residual(branch, inner, self.now[i])
                fit.add(inner, missing * self.left, self._positions(branch, i))
                inners.append(inner)
        if not alive:
            return None
        error = self._move(branch.output, fit, ridge)
        for i, inner in enumerate(inners):
            self.now[i] = self.small.close(branch, inner, self.now[i])
        return error

    def refit_head(self, ridge: float) -> float:
        """Refit the head's first map, and the second where the first lost outputs.

        Returns:
            The share of the squared error that is left.
        """
        pooled = self.small.sizes.pooled
        if self.small.sizes.mux and not self.mixes:
            self._mix()
        if pooled:
            self.rows, self.aim = ([x[:, :1] for x in y] for y in (self.rows, self.aim))
            self.now = [x[:, :1] for x in self.now]
        if self.mixes:
            self.now = [self.small.unmix(x, self.small.factors.hidden) for x in self.now]
        if not pooled:
            return self._refit_map("head.output", ridge)
        error = self._refit_map("head.dense", ridge, self.there, self.left)
        if isinstance(self.left, Tensor) or isinstance(self.there, Tensor):
            g = ACTIVATIONS[self.small.sizes.head]
            self.aim = [g(self.dense.linear("head.dense", x)) for x in self.aim]
            self.now = [g(self.small.linear("head.dense", x)) * self.left for x in self.now]
            error = self._refit_map("head.output", ridge)
        return error

    def _refit_map(
        self,
        name: str,
        ridge: float,
        there: Tensor | slice = EVERY,
        left: Tensor | float = 1.0,
    ) -> float:
        fit = RidgeRegression()
        for mask, aim, now in zip(self.rows, self.aim, self.now, strict=True):
            y = self.dense.linear(name, aim)[..., there]
            fit.add(now, (y - self.small.linear(name, now)) * left, mask.float())
        return self._move(name, fit, ridge)

    def weights(self) -> dict[str, Tensor]:
        """The small model's weights after the refit."""
        return {
            name: p.detach().to("cpu").clone() for name, p in self.small.named_parameters()
        }

    @property
    def keys(self) -> Tensor:
        """The keys of mixed rows, [n, D]."""
        return self.small.get_parameter("mux.keys")

    def _mix(self) -> None:
        """Mix the small model's rows."""
        pairs = [self.small.mix(*x) for x in zip(self.now, self.masks, strict=True)]
        self.now, self.masks = [x for x, _ in pairs], [mask for _, mask in pairs]
        self.mixes = True

    def _positions(self, branch: Branch, i: int) -> Tensor:
        """Weight of every position, [B, T]: 0 for padding, little where it is not read."""
        weight = self.masks[i].float()
        sizes = self.small.sizes
        if sizes.pooled and branch.index >= sizes.last_attention:
            weight = weight * UNREAD_WEIGHT
            weight[:, 0] = 1.0
        return weight

    def _move(self, name: str, fit: RidgeRegression, ridge: float) -> float:
        weight, bias, left = fit.solve(ridge)
        self.small.get_parameter(f"{name}.weight").add_(weight)
        self.small.get_parameter(f"{name}.bias").add_(bias)
        return round(left, 4)


def _wide(model: Model) -> Encoder:
    """Sizes without `pool_early`, so that every position is computed and can be fitted."""
    return replace(model.encoder, pool_early=False)
