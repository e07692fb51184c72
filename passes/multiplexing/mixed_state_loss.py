"""What layers that run on mixed rows should say: the dense states, mixed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from prumux.optimizer.model.ir import Encoder
from prumux.optimizer.model.module import EncoderModule
from prumux.passes.training.layer_matching import all_pairs, layer_pairs
from prumux.passes.training.losses import state_error
from prumux.passes.training.teacher import Seen
from prumux.passes.training.team import ALONE, Team

MIXED_HELP = "weight of the states of mixed rows between the layers"


@dataclass(frozen=True, eq=False)
class Between:
    """Layers of a student between mixing and taking apart, and what they are compared with."""

    pairs: Mapping[int, int]
    """Layers of the student, and of the teacher."""
    dims: tuple[Any, Any]
    """Which hidden dimensions of both are compared."""

    @classmethod
    def of(
        cls, student: Encoder, teacher: Encoder, dims: tuple[Any, Any], weight: float
    ) -> Self:
        """All such layers; none where their error has no weight."""
        single = layer_pairs(student, teacher)
        pairs = all_pairs(student, teacher) if weight else {}
        return cls({i: j for i, j in pairs.items() if i not in single}, dims)

    def error(
        self,
        module: EncoderModule,
        found: Seen,
        aim: Seen,
        real: Tensor,
        *,
        team: Team = ALONE,
    ) -> Tensor:
        """Mean `mixed_error` over the layers, 0 if there are none.

        Args:
            module: the student; its keys take no gradient from here.
            found, aim: what student and teacher said of a batch.
            real: bool [B, T], True on real tokens.
            team: whose share of a batch it is.
        """
        if not self.pairs:
            return torch.zeros((), device=real.device)
        here, there = self.dims
        keys = module.get_parameter("mux.keys").detach()[:, here]
        errors = [
            mixed_error(found.mixed[i][..., here], aim.states[j][..., there], keys, real, team)
            for i, j in self.pairs.items()
        ]
        return torch.stack(errors).mean()


def mixed_error(
    found: Tensor, aim: Tensor, keys: Tensor, real: Tensor, team: Team = ALONE
) -> Tensor:
    """`state_error` of mixed rows against the dense states of their members, mixed likewise.

    What is aimed at is the sum of k_i * t_i over the members that have a token there, over the
    root of their number, so that it varies about as much as a state of one row.

    Args:
        found: states of mixed rows, [B/n, T, D].
        aim: states of the dense model, [B, T, D].
        keys: k, [n, D].
        real: bool [B, T], True on real tokens.
    """
    anywhere = real.view(-1, len(keys), real.shape[1]).any(1)
    return state_error(found, together(aim, keys, real), anywhere, team)


def mixed_target(
    y: Tensor, keys: Tensor, real: Tensor, first: bool, *, spread: bool = True
) -> Tensor:
    """What a mixed row should be before a LayerNorm, given what its members should be.

    The LayerNorm has one deviation for all members, so each enters with its own taken out:

        s * sum_i k_i (y_i - mean y_i) / sd y_i / sqrt(n),   s^2 = mean of (sd y_i)^2

    Args:
        y: of single rows, [B, T, D].
        keys: k, [n, D].
        real: bool [B, T], True on real tokens.
        first: whether what comes in is a mean, as before the first block that runs on mixed
            rows; from there on it is as `together`.
        spread: whether a norm follows. Without one the stream stays a mean of its members.

    Returns:
        [B/n, T, D].
    """
    count = real.view(-1, len(keys), real.shape[1], 1).sum(1).clamp(min=1)
    if not spread:
        return together(y, keys, real) / count.sqrt()
    deviation = y.std(-1, correction=0, keepdim=True).clamp(min=1e-6)
    each = (deviation.square() * real[..., None]).view(-1, len(keys), real.shape[1], 1)
    common = (each.sum(1) / count).sqrt()
    found = common * together((y - y.mean(-1, keepdim=True)) / deviation, keys, real)
    return found / count.sqrt() if first else found


def together(states: Tensor, keys: Tensor, real: Tensor) -> Tensor:
    """The sum of k_i * x_i over members that have a token, over the root of their number.

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
