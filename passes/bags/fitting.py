"""Fit the vectors of a bag of embeddings so that its logits agree with the given model's.

The bag's logits X V + c are linear in its vectors V and its shift c, where X is the matrix of
features. So the loss is convex:

    min over V, c:  1/N ( sum_t D(X_t V + c, teacher_t) + sum_l E(X_l V + c, label_l) )
                    + ridge / 2N |V|^2

The index t runs over the rows with logits of the teacher, and l runs over all other labelled
rows; N is their number. D is the task's loss against logits, and E is the task's loss against
labels. L-BFGS finds the minimum (Liu and Nocedal 1989, https://doi.org/10.1007/BF01589116).
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
"""Number of earlier steps that L-BFGS remembers."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Aims:
    """Targets of rows: the teacher's logits, or else labels."""

    task: Task
    rows: int
    """Number of rows with a target."""
    taught: Tensor
    """Numbers of the rows with logits of the teacher, int64."""
    logits: Tensor
    """The teacher's logits for the rows `taught`, [taught, C]."""
    labelled: Tensor
    """Numbers of the rows with labels only, int64."""
    labels: Tensor
    """Labels of the rows `labelled`."""
    temperature: float = 1.0

    def loss(self, logits: Tensor) -> Tensor:
        """Mean loss of logits [N, C] over all rows with a target."""
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
    """The fitted vectors of a bag of embeddings, and its shift (bias)."""

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
    """Fit the vectors and the shift that minimise the loss.

    Args:
        matrix: features of the rows, [N, F].
        classes: C, the number of outputs.
        aims: targets of the N rows.
        ridge: weight of the squared norm of the vectors.
        steps: largest number of L-BFGS steps.
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
