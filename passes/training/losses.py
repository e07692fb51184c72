"""How far a student is from its teacher, and from the labels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.data.tokenize import Encoded, groups_of
from prumux.optimizer.model.ir import Task
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.tasks.metrics import IGNORE

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
    """T^2 KL(aim at T || found at T), or squared error, per row or real position.

    Args:
        found, aim: logits, [B, C] or [B, T, C].
        real: bool [B, T], True on real tokens.
        task: regression takes the squared error.
        temperature: T.
        team: whose share of a batch it is; see `Team.mean`. So in all that follows.
    """
    if found.dim() == 3:
        found, aim = found[real], aim[real]
    if task.problem == "regression":
        return team.mean(F.mse_loss(found.float(), aim.float()), len(found))
    t = temperature
    wanted = torch.log_softmax(aim.float() / t, -1)
    got = torch.log_softmax(found.float() / t, -1)
    nats = F.kl_div(got, wanted, log_target=True, reduction="batchmean")
    return team.mean(t * t * nats, len(found))


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
    """Cross-entropy of labels, or squared error; [B], for token tasks [B, T].

    Rows without a label (NaN for regression) do not count; 0 if none has one.
    """
    labels = torch.as_tensor(labels).to(logits.device).flatten()
    found = logits.float().flatten(0, -2)
    known = labels.isfinite() if task.problem == "regression" else labels != IGNORE
    count = int(known.sum())
    if not count:
        error = found.sum() * 0.0
    elif task.problem == "regression":
        error = F.mse_loss(found[known].squeeze(-1), labels[known].float())
    else:
        error = F.cross_entropy(found[known], labels[known])
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
