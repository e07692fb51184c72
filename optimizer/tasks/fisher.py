"""Fisher information of a model's predictions: functions that tasks share.

Draw y from the model's own prediction. The Fisher information of a row is the expected outer
product of the gradient of log p(y) with itself. Its diagonal is a sum of squared gradients.
The importance scores of masks are such sums, too: see https://arxiv.org/abs/1905.10650 and
https://arxiv.org/abs/2204.09656.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_CLASSES = 3
DRAWS = 2
"""Number of classes drawn from each prediction, if there are more than `EXACT_CLASSES`."""


def signs(logits: Tensor, real: Tensor | None, mixed: bool, random: torch.Generator) -> Tensor:
    """The factor of each prediction in a Fisher scalar, [B] or [B, T].

    The positions of a row share gradients, and so do the rows of a mixed row. Their
    predictions are summed, each with a random sign. The cross terms of the squared sum vanish
    on average, so one backward pass estimates the sum of squares. Predictions of separate rows
    need no sign.

    Args:
        logits: [B, C] or [B, T, C].
        real: bool [B, T], True at positions that count; None = one prediction per row.
        mixed: True if rows share a forward pass.
        random: the generator for drawing signs.
    """
    weight = torch.ones_like(logits[..., 0])
    if real is not None or mixed:
        weight = torch.randint(0, 2, weight.shape, generator=random).to(logits) * 2 - 1
    return weight if real is None else weight * real


def class_scalars(logits: Tensor, weight: Tensor, random: torch.Generator) -> list[Tensor]:
    """Fisher scalars of softmax predictions.

    With few classes there is one scalar for each class c, sqrt(p(c)) log p(c). The sum of the
    squared gradients is then the exact expectation. With many classes, `DRAWS` classes are
    drawn from p.

    Args:
        logits: [..., C].
        weight: [...], see `signs`.
        random: the generator for drawing classes.
    """
    log_p = torch.log_softmax(logits, dim=-1)
    if logits.shape[-1] <= EXACT_CLASSES:
        root = log_p.detach().exp().sqrt()
        return [(log_p[..., c] * root[..., c] * weight).sum() for c in range(log_p.shape[-1])]
    p = log_p.detach().exp().flatten(0, -2).cpu()
    drawn = torch.multinomial(p, DRAWS, replacement=True, generator=random)
    drawn = drawn.to(logits.device).view(*log_p.shape[:-1], DRAWS)
    picked = torch.gather(log_p, -1, drawn) / DRAWS**0.5
    return [(picked[..., c] * weight).sum() for c in range(DRAWS)]
