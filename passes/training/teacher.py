"""The teacher: the given model's outputs on the training rows, computed once.

Many candidates learn from the same rows, and each candidate reads a row many times. So on a
CPU the outputs are kept in memory, up to a limit.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.base.environment import free_bytes
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model import forward
from prumux.optimizer.model.families.registry import family_of
from prumux.optimizer.model.families.sentence import head
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderForward, EncoderModule

LIMIT_BYTES = 8 << 30
"""Largest memory for kept outputs. The limit is smaller if little memory is free."""


@dataclass(frozen=True, eq=False)
class ModelOutputs:
    """A model's outputs for one batch."""

    logits: Tensor
    """[B, C], or [B, T, C] for token tasks."""
    states: Mapping[int, Tensor]
    """The residual stream after each layer: [B, T, D], or [B, 1, D] if only the pooled
    position is computed."""
    mixed: Mapping[int, Tensor] = field(default_factory=dict)
    """The residual stream of mixed rows, [B/n, T, D], after the layers that run on them."""

    def narrowed(self, dims: Tensor) -> ModelOutputs:
        """Keep only these hidden dimensions of `states`."""
        return replace(self, states={i: x[..., dims] for i, x in self.states.items()})


def observe(
    module: EncoderForward, batch: Batch, device: str, everywhere: bool = False
) -> ModelOutputs:
    """Run a batch, and return the outputs that the losses compare.

    For layers that run on mixed rows, the states are the demultiplexed states of the last
    layer. With `everywhere` they are the states of all positions, otherwise only of the
    position that the head reads.
    """
    inputs: dict[str, Any] = {
        k: torch.as_tensor(v).to(device) for k, v in batch.inputs().items()
    }
    ops, sizes = module.ops(**inputs), module.sizes
    family, depth = family_of(sizes), len(sizes.layers)
    x: Any = ops.embed()
    states = dict.fromkeys(range(-1, depth), x)
    mixed = {}
    for branch, x in module.states(ops, x):  # noqa: B020
        if len(x) < len(inputs["input_ids"]):
            mixed[branch.index] = x
        states |= dict.fromkeys(range(branch.index, depth), x)
    last = max((branch.index for branch in module.alive), default=-1)
    if sizes.mux:
        first = sizes.reads_first and not everywhere
        x = forward.taken_apart(ops, ops.first(x) if first else x)
        start = min(sizes.mux.at, last) if module.alive else sizes.mux.at
        states |= dict.fromkeys(range(start, depth), x)
    elif family.pre_norm:  # the stream has no norm: compare the states that the head reads
        x = family.final(ops, x)
        states |= dict.fromkeys(range(last, depth), x)
    return ModelOutputs(head(ops, ops.pool(x)), states, mixed)


@dataclass(eq=False)
class Teacher:
    """The given model, and its outputs for the training rows."""

    module: EncoderModule
    layers: tuple[int, ...]
    """Numbers of the layers whose states are needed."""
    device: str
    held: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)
    """Outputs by row number: logits, then the states after each of `layers`, unpadded."""
    held_bytes: int = 0
    limit_bytes: int = field(default_factory=lambda: min(LIMIT_BYTES, free_bytes() // 3))

    def teach(self, batch: Batch) -> ModelOutputs:
        """Logits and the states after `layers`, for a batch of this teacher's rows."""
        if all(int(row) in self.held for row in batch.rows):
            return self._recall(batch)
        with torch.no_grad(), autocast(self.device):
            found = observe(self.module, batch, self.device)
        found = ModelOutputs(
            found.logits.float(), {i: found.states[i].bfloat16() for i in self.layers}
        )
        if self.device == "cpu" and self.held_bytes < self.limit_bytes:
            self._remember(batch, found)
        return found

    def _remember(self, batch: Batch, found: ModelOutputs) -> None:
        for i, row in enumerate(batch.rows):
            length = int(batch.attention_mask[i].sum())
            logits = found.logits[i] if self.module.sizes.pooled else found.logits[i, :length]
            parts = (logits, *(x[i, :length] for x in found.states.values()))
            self.held[int(row)] = tuple(part.clone() for part in parts)
            self.held_bytes += sum(x.numel() * x.element_size() for x in parts)

    def _recall(self, batch: Batch) -> ModelOutputs:
        rows = [self.held[int(row)] for row in batch.rows]
        length = batch.input_ids.shape[1]
        first, *states = zip(*rows, strict=True)
        logits = torch.stack(first) if self.module.sizes.pooled else _padded(first, length)
        # A row of one token has one state, too. So states are of one position only if all
        # rows have one state.
        narrow = {i: all(map(_single, x)) for i, x in zip(self.layers, states, strict=True)}
        return ModelOutputs(
            logits,
            {
                i: torch.stack(x) if narrow[i] else _padded(x, length)
                for i, x in zip(self.layers, states, strict=True)
            },
        )


def _single(row: Tensor) -> bool:
    return len(row) == 1


def _padded(rows: tuple[Tensor, ...], length: int) -> Tensor:
    found = rows[0].new_zeros(len(rows), length, rows[0].shape[-1])
    for i, row in enumerate(rows):
        found[i, : len(row)] = row
    return found


@functools.lru_cache(maxsize=1)
def teacher(
    dense: Model, rows: Encoded, layers: tuple[int, ...], device: str, everywhere: bool = False
) -> Teacher:
    """The teacher for these rows. It is cached, so that all candidates of a run share it.

    With `everywhere`, its last states include all positions, not only the pooled position.
    """
    del rows  # a part of the cache key: outputs are kept by row number
    narrow = dense.encoder.reads_first and not everywhere
    early = replace(dense, encoder=replace(dense.encoder, pool_early=narrow))
    return Teacher(EncoderModule(early).to(device).eval(), layers, device)
