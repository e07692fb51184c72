"""Training losses on logits that several tasks share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import IGNORE


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows, in nats.

    The factor T^2 keeps the size of the gradients, as in https://arxiv.org/abs/1503.02531.

    Args:
        student, teacher: logits [N, C].
        temperature: T.
    """
    t = temperature
    wanted = torch.log_softmax(teacher.float() / t, -1)
    got = torch.log_softmax(student.float() / t, -1)
    return t * t * F.kl_div(got, wanted, log_target=True, reduction="batchmean")


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Mean cross-entropy of labels that are not -100, and how many there are.

    Args:
        logits: [..., C].
        labels: class ids, [...].
    """
    found, ids = logits.float().flatten(0, -2), labels.flatten()
    known = ids != IGNORE
    count = int(known.sum())
    if not count:
        return found.sum() * 0.0, 0
    return F.cross_entropy(found[known], ids[known]), count


def hugging_face_loss(logits: Tensor, labels: Tensor, problem: str | None) -> Tensor:
    """The loss of Hugging Face's sequence classifiers, chosen by `problem_type`.

    Args:
        logits: [B, C].
        labels: int64 [B]; float [B] for regression, [B, C] for several labels a row.
        problem: as in `config.json`; None = guessed from the labels, as Hugging Face does.
    """
    classes = logits.shape[-1]
    whole = labels.dtype in (torch.long, torch.int)
    guess = "single_label_classification" if whole else "multi_label_classification"
    problem = problem or ("regression" if classes == 1 else guess)
    if problem == "regression":
        if classes == 1:
            logits, labels = logits.squeeze(), labels.squeeze()
        return F.mse_loss(logits, labels)
    if problem == "multi_label_classification":
        return F.binary_cross_entropy_with_logits(logits, labels)
    return F.cross_entropy(logits, labels.view(-1))


def position_loss(logits: Tensor, positions: Tensor) -> Tensor:
    """Cross-entropy of positions among those of a row, as Hugging Face's models have it.

    Args:
        logits: [B, T].
        positions: int64 [B] or [B, 1]; T and more = not scored.
    """
    length = logits.shape[1]
    aims = positions.reshape(-1).clamp(0, length)
    return F.cross_entropy(logits.float(), aims, ignore_index=length)
