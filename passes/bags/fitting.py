"""Fits the vectors of a bag of embeddings so that it answers as the dense model does.

The bag's logits are linear in its vectors, so the loss is convex:

    min over V, c:  1/N ( sum_t D(X_t V + c, teacher_t) + sum_l E(X_l V + c, label_l) )
                    + ridge / 2N |V|^2

Rows t are those that the teacher has answered, rows l the other labelled ones; D and E are the
task's losses. L-BFGS finds the minimum (Liu and Nocedal 1989,
https://doi.org/10.1007/BF01589116).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.optimize
import torch
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.tasks.task import Task

from .features import Sparse

MEMORY = 8
"""Pairs of steps that L-BFGS remembers."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Aims:
    """What rows should give: logits of the teacher, or else labels."""

    task: Task
    rows: int
    """How many rows have an aim."""
    taught: Tensor
    """Rows that the teacher answered, int64."""
    logits: Tensor
    """Its logits for them, [taught, C]."""
    labelled: Tensor
    """Further rows, int64."""
    labels: Tensor
    """Their labels."""
    temperature: float = 1.0

    def loss(self, logits: Tensor) -> Tensor:
        """The mean loss of logits [N, C]."""
        total = logits.sum() * 0.0
        if len(self.taught):
            off = self.task.logit_loss(logits[self.taught], self.logits, self.temperature)
            total = total + off * (len(self.taught) / self.rows)
        if len(self.labelled):
            error, count = self.task.label_loss(logits[self.labelled], self.labels)
            total = total + error * (count / self.rows)
        return total


@dataclass(frozen=True, eq=False)
class Fitted:
    """Vectors and shift of a bag of embeddings."""

    vectors: Floats
    """[F, C], float32."""
    shift: Floats
    """[C], float32."""

    def logits(self, matrix: Sparse) -> Tensor:
        """Logits of rows, [N, C]."""
        return torch.from_numpy(matrix @ self.vectors + self.shift)


def fit(  # noqa: PLR0917 - a loss and how it is minimised
    matrix: Sparse,
    classes: int,
    aims: Aims,
    ridge: float,
    steps: int,
    tick: Callable[[], None],
) -> Fitted:
    """The vectors of least loss.

    Args:
        matrix: rows over vectors, [N, F].
        classes: C, the outputs.
        aims: losses of the N rows.
        ridge: weight of the squared vectors.
        steps: most steps of L-BFGS.
        tick: called after each step.
    """
    rows, size = matrix.shape[0], matrix.shape[1] * classes
    turned = matrix.T.tocsr()

    def unpack(values: NDArray[np.float64]) -> Fitted:
        found = values.astype(np.float32)
        return Fitted(found[:size].reshape(-1, classes), found[size:])

    def loss(values: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        now = unpack(values)
        logits = now.logits(matrix).requires_grad_()
        total = aims.loss(logits)
        (grad,) = torch.autograd.grad(total, logits)
        vectors = turned @ grad.numpy() + ridge / rows * now.vectors
        slope = np.concatenate([vectors.ravel(), grad.sum(0).numpy()]).astype(np.float64)
        power = float(np.square(now.vectors, dtype=np.float64).sum())
        return float(total.detach()) + ridge / (2 * rows) * power, slope

    options: dict[str, Any] = {"maxiter": steps, "maxcor": MEMORY}
    found = scipy.optimize.minimize(
        loss,
        np.zeros(size + classes),
        jac=True,
        method="L-BFGS-B",
        callback=lambda _: tick(),
        options=options,
    )
    return unpack(found.x)
