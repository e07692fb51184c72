"""The refit of `reconstruct`: both models run branch by branch, and output maps are moved.

Where the small model mixes rows, its target is the dense states, multiplexed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import Batch, Encoded, groups_of
from prumux.optimizer.model import forward
from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Branch, Encoder
from prumux.optimizer.model.torch_ops import TorchOps
from prumux.passes.multiplexing.mixed_state_loss import mixed_target

from .least_squares import RidgeRegression

UNREAD_WEIGHT = 0.05
"""Weight of unread positions where the head reads one; stabilises the solution."""
BATCH = 64
LIMIT_BYTES = 512 << 20
"""Targets of the dense model are kept up to this size."""
EVERY = slice(None)
"""Every hidden dimension of the dense model."""


@dataclass(eq=False)
class _RecordingOps(TorchOps):
    """Records inputs and outputs of the head's linear maps."""

    maps: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def apply(self, name: str, x: Tensor) -> Tensor:
        """See `TorchOps.apply`."""
        y = super().apply(name, x)
        if name.startswith("head."):
            self.maps[name] = x, y
        return y


class _Recorded(EncoderModule):
    reading = _RecordingOps

    def recording(self, inputs: Mapping[str, Any]) -> _RecordingOps:
        """The operators for one batch."""
        ops = self.ops(**inputs)
        assert isinstance(ops, _RecordingOps)
        return ops


class DenseStream:
    """The dense model's residual stream on a sample of rows, branch by branch.

    Candidates are refitted to the same targets one after another, so the targets are kept
    where they take little memory.
    """

    def __init__(self, dense: Model, groups: list[Batch], device: str) -> None:
        module = _Recorded(replace(dense, encoder=_wide(dense))).to(device).eval()
        self.groups = groups
        self.inputs = [
            {k: torch.as_tensor(v).to(device) for k, v in batch.inputs().items()}
            for batch in groups
        ]
        self.ops = [module.recording(x) for x in self.inputs]
        self.branches = module.alive
        places = sum(x["input_ids"].numel() for x in self.inputs)
        size_bytes = 4 * places * dense.encoder.hidden * len(self.branches)
        self.keeps = size_bytes <= LIMIT_BYTES
        self.kept: dict[Branch, list[Tensor]] = {}
        self.stream = [ops.embed() for ops in self.ops]
        """After the last branch that was computed."""

    def sums(self, branch: Branch) -> list[Tensor]:
        """Output map plus residual of a branch, [B, T, D] a batch; asked for in order."""
        if branch in self.kept:
            return self.kept[branch]
        found = [
            ops.write(branch, forward.inner(ops, branch, x), x)
            for ops, x in zip(self.ops, self.stream, strict=True)
        ]
        self.stream = [
            forward.finish(ops, branch, y) for ops, y in zip(self.ops, found, strict=True)
        ]
        if self.keeps:
            self.kept[branch] = found
        return found


@lru_cache(maxsize=1)
def _shared_stream(
    dense: Model, fit: Encoded, rows: int, slots: int, device: str
) -> DenseStream:
    groups = groups_of(fit.take(range(rows)), BATCH, slots)
    return DenseStream(dense, groups, device)


def dense_stream(
    dense: Model, fit: Encoded, rows: int, slots: int, device: str
) -> DenseStream:
    """The stream on the first `rows` fit rows; shared by the candidates of a run if kept."""
    found = _shared_stream(dense, fit, rows, slots, device)
    if not found.keeps:
        _shared_stream.cache_clear()
    return found


class ResidualStreams:
    """The residual streams of the dense and the small model, advanced branch by branch."""

    def __init__(self, dense: DenseStream, small: Model, device: str) -> None:
        self.dense = dense
        copied = {name: tensor.clone() for name, tensor in small.weights.items()}
        self.small = _Recorded(replace(small, encoder=_wide(small), weights=copied))
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
        """The small model's masks are those of mixed rows, once it mixes."""
        self.now: list[Tensor] = [ops.embed() for ops in self.small_ops]

    def advance(self, branch: Branch, ridge: float) -> float | None:
        """Move both streams past a branch, and refit it where the small model has it.

        Returns:
            The share of the squared error of its output that is left; None without the branch.
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
        """Refit the head's first map, and the last where the first lost outputs.

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
        """Refit one map of the head to what the dense model's map of that name gives."""
        fit, inner_map = RidgeRegression(), name != "head.output"
        there, left = (self.there, self.left) if inner_map else (EVERY, 1.0)
        for (dense, aim), (small, now) in zip(self._dense(), self._small(), strict=True):
            for ops, x in ((dense, aim), (small, now)):
                self.family.head(ops, ops.pool(x))
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

    def _dense(self) -> list[tuple[_RecordingOps, Tensor]]:
        return list(zip(self.dense_ops, self.aim, strict=True))

    def _small(self) -> list[tuple[_RecordingOps, Tensor]]:
        return list(zip(self.small_ops, self.now, strict=True))

    def _mix(self) -> None:
        """Mix the small model's rows."""
        self.now = [ops.mix(x) for ops, x in self._small()]
        self.mixes = True

    def _positions(self, branch: Branch, mask: Tensor) -> Tensor:
        """Weight of every position, [B, T]: 0 for padding, little where it is not read."""
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


def _wide(model: Model) -> Encoder:
    """Sizes without `pool_early`, so that every position is computed and can be fitted."""
    return replace(model.encoder, pool_early=False)
