"""The refit of `reconstruct`: run both models branch by branch, and change the output maps.

If the small model mixes rows, its targets are the given model's multiplexed states.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from prumux.optimizer.model import forward
from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Branch
from prumux.passes.multiplexing.mixed_state_loss import mixed_target

from .dense_stream import DenseStream, RecordingModule, RecordingOps, without_pool_early
from .least_squares import RidgeRegression

UNREAD_WEIGHT = 0.05
"""Weight of positions that the head does not read. It stabilises the solution."""
EVERY = slice(None)
"""Every hidden dimension of the given model."""


class ResidualStreams:
    """The residual streams of the given model and the small model, branch by branch."""

    def __init__(self, dense: DenseStream, small: Model, device: str) -> None:
        self.dense = dense
        copied = {name: tensor.clone() for name, tensor in small.weights.items()}
        self.small = RecordingModule(
            replace(small, encoder=without_pool_early(small), weights=copied)
        )
        self.small.to(device).eval()
        self.alive = set(self.small.alive)
        self.family = family_of(small.encoder)
        hidden = self.small.factors.hidden
        self.left: Tensor | float = 1.0 if hidden is None else hidden
        cut = small.kept_hidden
        self.there = EVERY if cut is None else cut.to(device)
        self.mixes = False
        self.dense_ops = dense.ops
        self.small_ops = [self.small.recording(x) for x in dense.inputs]
        """Operators of the small model. After mixing, they have the masks of mixed rows."""
        self.now: list[Tensor] = [ops.embed() for ops in self.small_ops]

    def advance(self, branch: Branch, ridge: float) -> float | None:
        """Move both streams past a branch, and refit the branch if the small model has it.

        Returns:
            The squared error of the branch's output after the refit, divided by the error
            before it; None if the small model does not have the branch.
        """
        alive, mux = branch in self.alive, self.small.sizes.mux
        first = bool(mux and not self.mixes and alive and branch.index >= mux.at)
        if first:
            self._mix()
        sums = self.dense.sums(branch)
        if not alive:
            return None
        inners, fit = [], RidgeRegression()
        for i, small in enumerate(self.small_ops):
            inner = forward.inner(small, branch, self.now[i])
            wanted = sums[i][..., self.there]
            if self.mixes:
                real = small.row_mask.bool()
                spread = not self.family.pre_norm
                wanted = mixed_target(wanted, self.keys, real, first, spread=spread)
            missing = wanted - small.write(branch, inner, self.now[i])
            fit.add(inner, missing * self.left, self._positions(branch, small.mask))
            inners.append(inner)
        error = self._move(branch.output, fit, ridge)
        for i, inner in enumerate(inners):
            y = self.small_ops[i].write(branch, inner, self.now[i])
            self.now[i] = forward.finish(self.small_ops[i], branch, y)
        return error

    def refit_head(self, ridge: float) -> float:
        """Refit the head's first map, and its last map if pruning cut outputs of the first.

        Returns:
            The share of the squared error that is left.
        """
        if self.small.sizes.mux and not self.mixes:
            self._mix()
        self.aim = self.dense.stream
        if self.small.sizes.reads_first:
            self.aim, self.now = ([x[:, :1] for x in y] for y in (self.aim, self.now))
        self.aim = [forward.taken_apart(o, x) for o, x in self._dense()]
        self.now = [forward.taken_apart(o, x) for o, x in self._small()]
        first = "head.output" if self.small.sizes.head == "linear" else "head.dense"
        error = self._refit_map(first, ridge)
        cut = isinstance(self.left, Tensor) or isinstance(self.there, Tensor)
        return (
            self._refit_map("head.output", ridge) if first == "head.dense" and cut else error
        )

    def _refit_map(self, name: str, ridge: float) -> float:
        """Refit one map of the head to the outputs of the same map of the given model."""
        fit, inner_map = RidgeRegression(), name != "head.output"
        there, left = (self.there, self.left) if inner_map else (EVERY, 1.0)
        for (dense, aim), (small, now) in zip(self._dense(), self._small(), strict=True):
            for ops, x in ((dense, aim), (small, now)):
                self.family.pooled_head(ops, x)
            (_, wanted), (read, found) = dense.maps[name], small.maps[name]
            weight = (
                small.row_mask.float() if wanted.dim() == 3 else torch.ones_like(wanted[:, 0])
            )
            missing = (wanted[..., there] - found) * left
            fit.add(read, missing, weight)
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

    def _dense(self) -> list[tuple[RecordingOps, Tensor]]:
        return list(zip(self.dense_ops, self.aim, strict=True))

    def _small(self) -> list[tuple[RecordingOps, Tensor]]:
        return list(zip(self.small_ops, self.now, strict=True))

    def _mix(self) -> None:
        """Mix the rows of the small model's stream."""
        self.now = [ops.mix(x) for ops, x in self._small()]
        self.mixes = True

    def _positions(self, branch: Branch, mask: Tensor) -> Tensor:
        """Weight of every position, [B, T]: 0 for padding, small if the head ignores it."""
        weight = mask.float()
        sizes = self.small.sizes
        if sizes.reads_first and branch.index >= sizes.last_attention:
            weight = weight * UNREAD_WEIGHT
            weight[:, 0] = 1.0
        return weight

    def _move(self, name: str, fit: RidgeRegression, ridge: float) -> float:
        known = dict(self.small.named_parameters())
        bias = known.get(f"{name}.bias")
        weight, shift, left = fit.solve(ridge, intercept=bias is not None)
        known[f"{name}.weight"].add_(weight)
        if bias is not None:
            bias.add_(shift)
        return round(left, 4)
