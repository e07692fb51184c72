"""Detects data whose classes are numbered in another order than the model's."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .task import Task

LEVEL = 0.01
"""Probability of reporting another order although the order is right. The test is corrected
for the number of orders that move as many classes."""


@dataclass(frozen=True)
class LabelOrder:
    """Another order of the labels that fits the model's answers far better."""

    moved: tuple[tuple[str, str], ...]
    """Pairs of class names: the name as read, and the name that it seems to mean."""
    accuracy: float
    accuracy_as_read: float

    @property
    def described(self) -> str:
        """A description of the moved classes, for messages."""
        pairs = [f"'{read}' means '{meant}'" for read, meant in self.moved[:8]]
        return ", ".join(pairs) + (", ..." if self.moved[8:] else "")

    @property
    def option(self) -> str:
        """The command-line option that applies this order."""
        pairs = (shlex.quote(f"{read}={meant}") for read, meant in self.moved)
        return f"--labels {' '.join(pairs)}"


def explained(answers: NDArray[Any], labels: NDArray[Any], task: Task) -> LabelOrder | None:
    """The permutation of the classes that makes most answers right, if it is clearly better.

    An exact sign test compares the rows that become right with the rows that become wrong. It
    is corrected for the number of permutations that move as many classes.

    Args:
        answers: the model's class ids, [N].
        labels: class ids as read from the data, [N].
        task: the task with the class names.
    """
    from scipy.optimize import linear_sum_assignment

    classes = len(task.labels)
    counts = np.zeros((classes, classes))
    np.add.at(counts, (labels, answers), 1)
    # Among equally good permutations, prefer the one that moves the fewest classes.
    read, meant = linear_sum_assignment(
        counts + np.eye(classes) / (2 * classes), maximize=True
    )
    order = np.empty(classes, dtype=np.int64)
    order[read] = meant
    moved = [c for c in range(classes) if order[c] != c]
    right, right_then = answers == labels, answers == order[labels]
    better, worse = int((right_then & ~right).sum()), int((right & ~right_then).sum())
    if not moved or better <= worse:
        return None
    orders = math.lgamma(classes + 1) - math.lgamma(classes - len(moved) + 1)
    if log_sign_test(better, worse) + orders > math.log(LEVEL):
        return None
    names = tuple((task.labels[c], task.labels[order[c]]) for c in moved)
    return LabelOrder(names, float(right_then.mean()), float(right.mean()))


def log_sign_test(more: int, fewer: int) -> float:
    """Logarithm of the probability of at least `more` heads in `more + fewer` coin tosses."""
    from scipy.stats import binom

    return float(binom.logsf(more - 1, more + fewer, 0.5)) if more else 0.0


def sign_test(more: int, fewer: int) -> float:
    """Probability of at least `more` heads in `more + fewer` tosses of a fair coin."""
    return math.exp(log_sign_test(more, fewer))
