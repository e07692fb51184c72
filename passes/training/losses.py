"""How far a student is from its teacher, and from the labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.data.tokenize import Encoded, groups_of
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.tasks.task import Task

from .teacher import Teacher, observe
from .team import ALONE, Team

BATCH = 64


def divergence(
    found: Tensor,
    aim: Tensor,
    real: Tensor,
    task: Task,
    temperature: float,
    *,
    team: Team = ALONE,
) -> Tensor:
    """Distance of a student's logits from the teacher's, mean per row or real position.

    Args:
        found, aim: logits, [B, C] or [B, T, C].
        real: bool [B, T], True on real tokens.
        task: chooses the distance: see `Task.logit_loss`.
        temperature: softens both predictions.
        team: whose share of a batch it is; see `Team.mean`. So in all that follows.
    """
    if found.dim() == 3:
        found, aim = found[real], aim[real]
    return team.mean(task.logit_loss(found, aim, temperature), len(found))


def state_error(found: Tensor, aim: Tensor, real: Tensor, team: Team = ALONE) -> Tensor:
    """Squared error of hidden states [B, T, D] at real positions over their variance."""
    return relative(*state_parts(found, aim, real, team))


def relative(error: Tensor, variance: Tensor) -> Tensor:
    """An error over a variance, which is 0 where all states are alike."""
    return error / (variance + 1e-6)


def state_parts(
    found: Tensor, aim: Tensor, real: Tensor, team: Team = ALONE
) -> tuple[Tensor, Tensor]:
    """Both parts of `state_error`, so that they can be summed over batches first.

    The variance is that of the whole batch.
    """
    positions = min(found.shape[1], aim.shape[1])
    real = real[:, :positions]
    s, t = found[:, :positions][real].float(), aim[:, :positions][real].float()
    if team.size == 1:
        return F.mse_loss(s, t), t.var(0, correction=0).mean()
    variance, mean = (x.double() for x in torch.var_mean(t, 0, correction=0))
    moments = torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
    count, first, second = team.total(len(t) * moments)
    whole = second / count - (first / count).square()
    return F.mse_loss(s, t) * (len(t) / float(count[0])), whole.mean().float()


def label_error(logits: Tensor, labels: Any, task: Task, team: Team = ALONE) -> Tensor:
    """Loss of logits against labels, [B] or [B, T], over all processes: `Task.label_loss`."""
    error, count = task.label_loss(logits, torch.as_tensor(labels).to(logits.device))
    return team.mean(error, count)


def mean_divergence(module: EncoderModule, judge: Teacher, rows: Encoded, task: Task) -> float:
    """Mean divergence of a module from the dense predictions on some rows, at T = 1."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in groups_of(rows, BATCH, module.sizes.slots):
            found = observe(module, batch, judge.device)
            real = torch.as_tensor(batch.attention_mask).to(judge.device).bool()
            off = divergence(found.logits, judge.teach(batch).logits, real, task, 1.0)
            total += float(off) * len(batch.rows)
            count += len(batch.rows)
    return total / count
