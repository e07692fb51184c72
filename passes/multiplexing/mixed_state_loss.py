"""Loss for layers that run on mixed rows. The target is the teacher's multiplexed states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Encoder
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.layer_matching import all_pairs, layer_pairs
from prumux.passes.training.losses import state_error
from prumux.passes.training.teacher import ModelOutputs

MIXED_HELP = "weight of the error of mixed rows' states between the layers"


@dataclass(frozen=True, eq=False)
class MixedStateLoss:
    """Mean error of the student's layers that run on mixed rows."""

    pairs: Mapping[int, int]
    """The teacher's layer for each layer of the student."""
    dims: tuple[Any, Any]
    """The hidden dimensions that are compared, in the student and in the teacher."""

    @classmethod
    def of(
        cls, student: Encoder, teacher: Encoder, dims: tuple[Any, Any], weight: float
    ) -> Self:
        """Compare all layers that run on mixed rows; none if `weight` is 0."""
        single = layer_pairs(student, teacher)
        pairs = all_pairs(student, teacher) if weight else {}
        return cls({i: j for i, j in pairs.items() if i not in single}, dims)

    def error(
        self,
        module: EncoderModule,
        found: ModelOutputs,
        aim: ModelOutputs,
        real: Tensor,
        *,
        parallel: DataParallel = ALONE,
    ) -> Tensor:
        """Mean `mixed_error` over the layers; 0 if there are none.

        Args:
            module: the student. Its keys get no gradient from this loss.
            found, aim: outputs of student and teacher for a batch.
            real: bool [B, T], True on real tokens.
            parallel: the processes that share the batch.
        """
        if not self.pairs:
            return torch.zeros((), device=real.device)
        here, there = self.dims
        keys = module.get_parameter("mux.keys").detach()[:, here]
        errors = [
            mixed_error(
                found.mixed[i][..., here], aim.states[j][..., there], keys, real, parallel
            )
            for i, j in self.pairs.items()
        ]
        return torch.stack(errors).mean()


def mixed_error(
    found: Tensor, aim: Tensor, keys: Tensor, real: Tensor, parallel: DataParallel = ALONE
) -> Tensor:
    """`state_error` of mixed rows against the multiplexed states of the given model.

    At every position the target is sum_i k_i * t_i / sqrt(m), over the m rows of a group that
    have a token at this position. So the variance of the target is about the variance of a
    single row's state.

    Args:
        found: states of mixed rows, [B/n, T, D].
        aim: states of the given model, [B, T, D].
        keys: k, [n, D].
        real: bool [B, T], True on real tokens.
    """
    anywhere = real.view(-1, len(keys), real.shape[1]).any(1)
    return state_error(found, multiplex(aim, keys, real), anywhere, parallel)


def mixed_target(
    y: Tensor, keys: Tensor, real: Tensor, first: bool, *, spread: bool = True
) -> Tensor:
    """The target of a mixed row before a LayerNorm, from the targets y_i of its single rows.

    The LayerNorm divides all rows of a group by one standard deviation. So each row is first
    divided by its own standard deviation, and the sum is scaled back:

        s * sum_i k_i (y_i - mean y_i) / sd y_i / sqrt(n),   s^2 = mean of (sd y_i)^2

    Args:
        y: targets of single rows, [B, T, D].
        keys: k, [n, D].
        real: bool [B, T], True on real tokens.
        first: True for the first block on mixed rows. Its input is a mean over the rows of a
            group. All later states are sums divided by the root of the number of rows, see
            `multiplex`.
        spread: True if a norm follows. Without a norm the stream stays a mean over rows.

    Returns:
        [B/n, T, D].
    """
    count = real.view(-1, len(keys), real.shape[1], 1).sum(1).clamp(min=1)
    if not spread:
        return multiplex(y, keys, real) / count.sqrt()
    deviation = y.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
    each = (deviation.square() * real[..., None]).view(-1, len(keys), real.shape[1], 1)
    common = (each.sum(1) / count).sqrt()
    found = common * multiplex((y - y.mean(-1, keepdim=True)) / deviation, keys, real)
    return found / count.sqrt() if first else found


def multiplex(states: Tensor, keys: Tensor, real: Tensor) -> Tensor:
    """sum_i k_i * x_i / sqrt(m) over the m rows of a group that have a token at a position.

    Args:
        states: x, [B, T, D].
        keys: k, [n, D].
        real: bool [B, T], True on real tokens.

    Returns:
        [B/n, T, D].
    """
    here = real.view(-1, len(keys), real.shape[1], 1)  # [B/n, n, T, 1]
    members = states.reshape(-1, len(keys), *states.shape[1:]) * (keys[:, None] * here)
    return members.sum(1) / here.sum(1).clamp(min=1).sqrt()
