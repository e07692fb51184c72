"""Parity: the difference between the logits of two engines, checked after a graph changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import GateError
from prumux.optimizer.tasks.task import Task

TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}
"""Largest allowed difference of a logit between two engines, by precision. It is a share of
the largest absolute logit, or of 1 if this logit is smaller than 1."""


@dataclass(frozen=True)
class Parity:
    """Difference between two sets of logits."""

    max_abs_diff: float
    """Largest absolute difference of a logit; nan or inf if a logit is nan or inf."""
    agreement: float
    """Share of rows with the same answer (for token tasks: of real positions)."""
    rows: int
    """Number of compared rows; for token tasks, number of compared positions."""
    broken: int = 0
    """Number of compared rows or positions with logits that are nan or infinite."""


def compare(
    reference: Sequence[NDArray[Any]],
    found: Sequence[NDArray[Any]],
    task: Task,
    masks: Sequence[NDArray[Any]] | None = None,
) -> Parity:
    """Compare logits batch by batch.

    Args:
        reference: logits of each batch, [B, C] or [B, T, C].
        found: the other engine's logits of the same batches.
        task: selects the logits to compare, and compares answers.
        masks: attention masks [B, T] of each batch. Token tasks need them.

    Raises:
        GateError: the shapes differ.
    """
    for a, b in zip(reference, found, strict=True):
        if a.shape != b.shape:
            raise GateError(f"logits of shape {b.shape}, expected {a.shape}")
    a, b = (task.answer_logits(x, masks) for x in (reference, found))
    with np.errstate(invalid="ignore"):
        largest = float(np.abs(a - b).max(initial=0.0))
    same = task.same_answers(a, b)
    broken = int((~np.isfinite(b).all(axis=-1)).sum())
    return Parity(largest, float(same.mean()) if len(a) else 1.0, len(a), broken)


def check_finite(parity: Parity, what: str, remedy: str) -> None:
    """Refuse logits that are nan or infinite, even if the labels are right.

    Args:
        parity: the result of `compare`.
        what: subject of the error message.
        remedy: last line of the error message.

    Raises:
        GateError: the message has the number of rows and the remedy.
    """
    if parity.broken:
        raise GateError(
            f"{what}: the logits of {parity.broken} of {parity.rows} rows are not finite\n"
            f"{remedy}"
        )


def check(parity: Parity, limit: float, what: str, remedies: Sequence[str] = ()) -> None:
    """Refuse logits that differ by more than `limit`, or that are nan.

    Raises:
        GateError: the message has the difference, the limit, the agreement and the remedies.
    """
    if parity.max_abs_diff <= limit:
        return
    cure = "\n" + ", or ".join(remedies) if remedies else ""
    raise GateError(
        f"{what}: logits differ by up to {parity.max_abs_diff:.3g}, the limit is {limit:.3g} "
        f"({parity.agreement:.2%} of {parity.rows} labels agree){cure}"
    )


def above(value: float) -> float:
    """The smallest power of ten that is at least `value`, to suggest as a limit.

    Example:
        >>> above(0.003)
        0.01
    """
    return float(10.0 ** np.ceil(np.log10(value)))
