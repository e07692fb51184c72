"""The given model's residual stream: the target of the refit of candidates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import Batch, Encoded, groups_of
from prumux.optimizer.model import forward
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Branch, Encoder
from prumux.optimizer.model.torch_ops import TorchOps

BATCH = 64
LIMIT_BYTES = 512 << 20
"""The targets of the refit are kept in memory if they are no larger than this."""


@dataclass(eq=False)
class RecordingOps(TorchOps):
    """Records inputs and outputs of the head's linear maps."""

    maps: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def apply(self, name: str, x: Tensor) -> Tensor:
        """See `TorchOps.apply`."""
        y = super().apply(name, x)
        if name.startswith("head."):
            self.maps[name] = x, y
        return y


class RecordingModule(EncoderModule):
    """An encoder that runs with `RecordingOps`."""

    reading = RecordingOps

    def recording(self, inputs: Mapping[str, Any]) -> RecordingOps:
        """Recording operators for one batch."""
        ops = self.ops(**inputs)
        assert isinstance(ops, RecordingOps)
        return ops


class DenseStream:
    """The given model's residual stream on a sample of rows, branch by branch.

    All candidates are refitted to the same targets, so the targets are kept in memory up to
    `LIMIT_BYTES`.
    """

    def __init__(self, dense: Model, groups: list[Batch], device: str) -> None:
        module = (
            RecordingModule(replace(dense, encoder=without_pool_early(dense)))
            .to(device)
            .eval()
        )
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
        """The residual stream after the last computed branch."""

    def sums(self, branch: Branch) -> list[Tensor]:
        """Branch output plus residual, [B, T, D] per batch. Call it branch after branch."""
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
    """The stream on the first `rows` fit rows. If kept, it is shared by all candidates."""
    found = _shared_stream(dense, fit, rows, slots, device)
    if not found.keeps:
        _shared_stream.cache_clear()
    return found


def without_pool_early(model: Model) -> Encoder:
    """The model's sizes without `pool_early`: all positions are computed and can be fitted."""
    return replace(model.encoder, pool_early=False)
