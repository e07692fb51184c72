"""Losses of a student: the distance from its teacher, and the error against labels.

Knowledge distillation is from Hinton et al., https://arxiv.org/abs/1503.02531. All losses are
means. If processes share a batch, the losses of their shares add up to the mean over the whole
batch, see `DataParallel.mean`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.data.tokenize import Encoded, groups_of
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.tasks.task import Task

from .data_parallel import ALONE, DataParallel
from .teacher import Teacher, observe

BATCH = 64


def divergence(
    found: Tensor,
    aim: Tensor,
    real: Tensor,
    task: Task,
    temperature: float,
    *,
    groups: Any = None,
    labels: Any = None,
    parallel: DataParallel = ALONE,
) -> Tensor:
    """Mean distance of a student's logits from the teacher's, per row or real position.

    Args:
        found, aim: logits of student and teacher, [B, C] or [B, T, C].
        real: bool [B, T], True on real tokens, False on padding.
        task: chooses the distance, see `Task.logit_loss`.
        temperature: T, above 0; softens both predictions.
        groups: the number of each row's query, [B], if rows belong to queries.
        labels: labels of positions, [B, T]. A task may leave out positions by their label.
        parallel: the processes that share the batch.
    """
    if found.dim() == 3:
        off, count = task.position_loss(found, aim, task.counted(real, labels), temperature)
        return parallel.mean(off, count)
    if groups is None:
        return parallel.mean(task.logit_loss(found, aim, temperature), len(found))
    numbers = torch.as_tensor(groups).to(found.device)
    return parallel.mean(task.group_loss(found, aim, numbers, temperature), len(found))


def state_error(
    found: Tensor, aim: Tensor, real: Tensor, parallel: DataParallel = ALONE
) -> Tensor:
    """Squared error of hidden states at real positions, relative to the teacher's variance.

    Args:
        found, aim: states of student and teacher, [B, T, D], or [B, 1, D] if only the pooled
            position was computed. The first positions that both have are compared.
        real: bool [B, T], True on real tokens.
        parallel: the processes that share the batch.
    """
    return relative(*state_parts(found, aim, real, parallel))


def relative(error: Tensor, variance: Tensor) -> Tensor:
    """Divide an error by a variance, which may be 0."""
    return error / (variance + 1e-6)


def state_parts(
    found: Tensor, aim: Tensor, real: Tensor, parallel: DataParallel = ALONE
) -> tuple[Tensor, Tensor]:
    """Error and variance of `state_error`, as two values that can be summed over batches.

    The variance is computed over the whole batch.
    """
    positions = min(found.shape[1], aim.shape[1])
    real = real[:, :positions]
    s, t = found[:, :positions][real].float(), aim[:, :positions][real].float()
    if parallel.size == 1:
        return F.mse_loss(s, t), t.var(0, correction=0).mean()
    variance, mean = (x.double() for x in torch.var_mean(t, 0, correction=0))
    moments = torch.stack([torch.ones_like(mean), mean, variance + mean.square()])
    count, first, second = parallel.total(len(t) * moments)
    whole = second / count - (first / count).square()
    return F.mse_loss(s, t) * (len(t) / float(count[0])), whole.mean().float()


def label_error(
    logits: Tensor, labels: Any, task: Task, parallel: DataParallel = ALONE
) -> Tensor:
    """Mean loss against the labels, see `Task.label_loss`.

    Args:
        logits: [B, C], for token tasks [B, T, C].
        labels: [B], for token tasks [B, T]. Rows without a label are left out.
        task: chooses the loss.
        parallel: the processes that share the batch.
    """
    error, count = task.label_loss(logits, torch.as_tensor(labels).to(logits.device))
    return parallel.mean(error, count)


def mean_divergence(
    module: EncoderModule, teacher: Teacher, rows: Encoded, task: Task
) -> float:
    """Mean divergence of a module from the given model's predictions on `rows`, at T = 1."""
    total, count = 0.0, 0
    with torch.no_grad():
        for batch in groups_of(rows, BATCH, module.sizes.slots):
            found = observe(module, batch, teacher.device)
            real = torch.as_tensor(batch.attention_mask).to(teacher.device).bool()
            aim = teacher.teach(batch).logits
            off = divergence(
                found.logits, aim, real, task, 1.0, groups=batch.groups, labels=batch.labels
            )
            total += float(off) * len(batch.rows)
            count += len(batch.rows)
    return total / count
