"""The refit itself: both models, branch by branch, and the maps that are moved."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prumux.optimizer.encode import Batch
from prumux.optimizer.ir import Encoder, Model
from prumux.optimizer.module import ACTIVATIONS, Branch, EncoderModule, attention_bias

from .least_squares import Fit

AROUND = 0.05
"""Weight of other positions where only the pooled one is read: it steadies the solution."""
EVERY = slice(None)
"""Every hidden dimension of the dense model."""


class Streams:
    """The residual streams of the dense and the small model, moving up together."""

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
        self.masks = [torch.as_tensor(b.attention_mask).to(device) for b in groups]
        self.biases = [attention_bias(mask) for mask in self.masks]
        self.aim: list[Tensor] = []
        self.now: list[Tensor] = []
        for batch in groups:
            inputs = {k: torch.as_tensor(v).to(device) for k, v in batch.inputs().items()}
            ids, types = inputs["input_ids"], inputs.get("token_type_ids")
            self.aim.append(self.dense.embed(ids, types, None))
            self.now.append(self.small.embed(ids, types, hidden))

    def advance(self, branch: Branch, ridge: float) -> float | None:
        """Move both streams past a branch, refitting it first where the small model has it.

        Returns the share of the branch's missing output that is left after the refit.
        """
        alive = branch in self.alive
        inners, fit = [], Fit()
        for i, bias in enumerate(self.biases):
            inner = self.dense.inner(branch, self.aim[i], bias)
            y = self.dense.residual(branch, inner, self.aim[i])
            self.aim[i] = self.dense.normalise(branch, y)
            if alive:
                inner = self.small.inner(branch, self.now[i], bias)
                y_small = self.small.residual(branch, inner, self.now[i])
                missing = y[..., self.there] - y_small
                fit.add(inner, missing * self.left, self._positions(branch, i))
                inners.append(inner)
        if not alive:
            return None
        error = self._move(branch.output, fit, ridge)
        for i, inner in enumerate(inners):
            self.now[i] = self.small.close(branch, inner, self.now[i])
        return error

    def refit_head(self, ridge: float) -> float:
        """Refit the head's first map, then the second where the first lost outputs."""
        if not self.small.sizes.pooled:
            return self._refit_map("head.output", ridge)
        self.masks, self.aim, self.now = (
            [x[:, :1] for x in group] for group in (self.masks, self.aim, self.now)
        )
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
        fit = Fit()
        for mask, aim, now in zip(self.masks, self.aim, self.now, strict=True):
            y = self.dense.linear(name, aim)[..., there]
            fit.add(now, (y - self.small.linear(name, now)) * left, mask.float())
        return self._move(name, fit, ridge)

    def weights(self) -> dict[str, Tensor]:
        """The small model's weights, moved maps included."""
        return {
            name: p.detach().to("cpu").clone() for name, p in self.small.named_parameters()
        }

    def _positions(self, branch: Branch, i: int) -> Tensor:
        """Weight of every position, [B, T]: padding none; little where nobody reads it."""
        weight = self.masks[i].float()
        sizes = self.small.sizes
        if sizes.pooled and branch.index >= sizes.last_attention:
            weight = weight * AROUND
            weight[:, 0] = 1.0
        return weight

    def _move(self, name: str, fit: Fit, ridge: float) -> float:
        weight, bias, left = fit.solve(ridge)
        self.small.get_parameter(f"{name}.weight").add_(weight)
        self.small.get_parameter(f"{name}.bias").add_(bias)
        return round(left, 4)


def _wide(model: Model) -> Encoder:
    """Sizes with every position computed, so that all of them can be fitted."""
    return replace(model.encoder, pool_early=False)
