"""Scalars whose squared gradients are the Fisher information of a model's predictions."""

from __future__ import annotations

import torch
from torch import Tensor

from prumux.optimizer.model.ir import Model

EXACT_CLASSES = 3
DRAWS = 2
"""Above `EXACT_CLASSES`, so many classes are drawn for each row from its prediction."""


def losses(
    model: Model, logits: Tensor, real: Tensor | None, random: torch.Generator
) -> list[Tensor]:
    """Scalars whose squared gradients sum to the Fisher information of each row.

    For token tasks a row's positions are summed, each with a random sign: the cross terms
    vanish on average, so one backward pass estimates the sum over positions. The same holds
    for the members of a mixed row.
    """
    weight = torch.ones_like(logits[..., 0])  # [B] or [B, T]
    if real is not None or model.encoder.mux:
        weight = torch.randint(0, 2, weight.shape, generator=random).to(logits) * 2 - 1
    if real is not None:
        weight = weight * real
    if model.task.problem == "regression":
        return [(logits[..., 0] * weight).sum()]
    log_p = torch.log_softmax(logits, dim=-1)  # [B, C] or [B, T, C]
    if logits.shape[-1] <= EXACT_CLASSES:
        root = log_p.detach().exp().sqrt()
        return [(log_p[..., c] * root[..., c] * weight).sum() for c in range(log_p.shape[-1])]
    p = log_p.detach().exp().flatten(0, -2).cpu()
    drawn = torch.multinomial(p, DRAWS, replacement=True, generator=random)
    drawn = drawn.to(logits.device).view(*log_p.shape[:-1], DRAWS)
    picked = torch.gather(log_p, -1, drawn) / DRAWS**0.5
    return [(picked[..., c] * weight).sum() for c in range(DRAWS)]
