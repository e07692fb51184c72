"""Parity: how far the logits of two engines differ. Checked after every change of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import GateError
from prumux.optimizer.tasks.task import Task

TOLERANCES = {"fp32": 1e-3, "fp16": 0.02, "bf16": 0.1, "int8": 0.5}
"""Largest difference of a logit between two engines of a precision, as a share of the largest
absolute logit, or of 1 if that is smaller."""


@dataclass(frozen=True)
class Parity:
    """Difference between two sets of logits."""

    max_abs_diff: float
    """Largest absolute difference of a logit; nan or inf if a logit is."""
    agreement: float
    """Share of rows (for token tasks of real positions) with the same answer."""
    rows: int
    """Number of rows that were compared; of real positions for token tasks."""
    broken: int = 0
    """Number of these whose found logits are nan or infinite."""


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
        task: says which logits count, and which answers are the same.
        masks: attention masks [B, T] of each batch, needed for token tasks.

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
    """Refuse logits that are nan or infinite, whatever label they give.

    Args:
        parity: from `compare`.
        what: subject of the error message.
        remedy: last line of the error message.

    Raises:
        GateError: names the number of rows and the remedy.
    """
    if parity.broken:
        raise GateError(
            f"{what}: the logits of {parity.broken} of {parity.rows} rows are not finite\n"
            f"{remedy}"
        )


def check(parity: Parity, limit: float, what: str, remedies: Sequence[str] = ()) -> None:
    """Refuse logits that differ by more than `limit`, or that are nan.

    Raises:
        GateError: gives the difference, the limit, the agreement and the remedies.
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
