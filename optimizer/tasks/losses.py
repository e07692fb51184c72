"""Training losses of logits. Several tasks share them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .labels import IGNORE


def kl_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(student / T)), mean over rows, in nats.

    The factor T^2 keeps gradients at the same scale for every T, as in
    https://arxiv.org/abs/1503.02531.

    Args:
        student, teacher: logits [N, C].
        temperature: T.
    """
    t = temperature
    wanted = torch.log_softmax(teacher.float() / t, -1)
    got = torch.log_softmax(student.float() / t, -1)
    return t * t * F.kl_div(got, wanted, log_target=True, reduction="batchmean")


def cross_entropy(logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
    """Mean cross-entropy over the labels that are not -100, and the number of these labels.

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
        labels: int64 [B]; float [B] for regression; float [B, C] for several labels per row.
        problem: `problem_type` of `config.json`. None = guessed from the labels, as in Hugging
            Face.
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
    """Cross-entropy of the right position in each row, as in Hugging Face's models.

    Args:
        logits: one logit per position, [B, T].
        positions: int64 [B] or [B, 1]; T or more = not scored.
    """
    length = logits.shape[1]
    aims = positions.reshape(-1).clamp(0, length)
    return F.cross_entropy(logits.float(), aims, ignore_index=length)
