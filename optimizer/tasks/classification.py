"""Text classification: one of C classes for each text or pair of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .fisher import class_scalars
from .labels import Fail, Ints, label_ids
from .losses import cross_entropy, kl_divergence
from .metrics import (
    AGREEMENT,
    Metric,
    Predictions,
    Scorer,
    balanced_accuracy,
    f1_of_one,
    macro_f1,
    matthews,
    share,
)
from .prediction import Answer, class_predictions
from .task import Pooling, Task, WorstCase

HIDDEN = -1
"""The label of rows with a secret label, as in GLUE's test splits."""


@dataclass(frozen=True)
class Classification(Task):
    """One class for each row. Predictions are class ids [N]."""

    name: ClassVar[str] = "text-classification"
    kind: ClassVar[str] = "text-classification"
    problem: ClassVar[str] = "classification"
    problem_type: ClassVar[str] = "single_label_classification"
    head: ClassVar[str] = "ForSequenceClassification"
    pooling: ClassVar[Pooling] = "first"
    columns: ClassVar[tuple[str, ...]] = ("label",)
    other_columns: ClassVar[tuple[str, ...]] = ("labels",)

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True for this `problem_type`, or if it is missing and there are several labels."""
        return problem_type == cls.problem_type or (problem_type is None and labels != 1)

    @property
    def output_labels(self) -> tuple[str, ...]:
        """All labels, because the largest logit is the answer; none for a single label."""
        return self.labels if len(self.labels) > 1 else ()

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Ints | None:
        """Class ids [N] from ids or label names; None if every value is -1 (hidden labels)."""
        del words
        names = self.labels
        ids = label_ids(values, names, fail, allowed=HIDDEN)
        if (ids == HIDDEN).all():
            return None
        if (ids == HIDDEN).any():
            row = int(np.flatnonzero(ids == HIDDEN)[0])
            fail(
                row,
                f"label -1 is not in 0..{len(names) - 1}: remove the row, or say what it "
                f"means: --labels=-1={names[0]} ...",
            )
        if len(names) > 1 and (ids == ids[0]).all():
            fail(
                None,
                f"all {len(ids)} rows have the label {ids[0]} ('{names[ids[0]]}'), the model "
                f"knows {len(names)}: give rows of at least 2 classes",
            )
        return ids

    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> Ints:
        """The class with the largest logit, [N]."""
        del scored
        return np.asarray(np.asarray(logits).argmax(-1))

    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """The likeliest class of each row, and the probability of every class."""
        return [*class_predictions(np.asarray(logits), self.labels)]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Accuracy, metrics for classes of unequal frequency, and agreement.

        With two classes, F1 is the F1 of class 1. With more classes, it is the mean F1 of all
        classes (scikit-learn's `average="macro"`).
        """
        return (
            Metric("accuracy", "paired", counts_answers=True),
            Metric("balanced-accuracy", "stratified", classes_alike=True),
            Metric("macro-f1", classes_alike=True),
            Metric("f1"),
            Metric("matthews_correlation"),
            Metric(AGREEMENT, "paired", needs_labels=False, counts_answers=True),
        )

    @property
    def default_metric(self) -> str:
        """Accuracy."""
        return "accuracy"

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        p, y, classes = np.asarray(predictions), np.asarray(labels), len(self.labels)
        if metric == "f1" and classes == 2:
            return f1_of_one(p, y)
        if metric in ("f1", "macro-f1"):
            return macro_f1(p, y, classes)
        if metric == "balanced-accuracy":
            return balanced_accuracy(p, y, classes)
        if metric == "matthews_correlation":
            return matthews(p, y, classes)
        return share(p == y)

    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """Adds misclassified rows of the class where errors cost most, often a rare one.

        For accuracy without changed rows, the loss equals Tango's bound z^2 / (n + z^2).
        """
        del metric
        p, q, y = (np.asarray(x) for x in (dense, optimised, labels))
        counts = np.bincount(y, minlength=len(self.labels))
        # A macro mean covers the classes that occur. With two classes, both enter the score.
        classes = np.arange(len(counts)) if len(counts) == 2 else np.flatnonzero(counts)
        # Each row is mistaken for the rarest other class, where a false positive costs most.
        rarest = [*classes[np.argsort(counts[classes], kind="stable")], *range(len(counts))]
        wrong = [next(c for c in rarest if c != k) for k in classes]
        weights = np.hstack([np.ones((len(classes), len(y))), extra * np.eye(len(classes))])
        return WorstCase(
            np.concatenate([p, classes]),
            np.concatenate([q, wrong]),
            np.concatenate([y, classes]),
            weights,
        )

    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL divergence of the softened predictions, in nats."""
        return kl_divergence(student, teacher, temperature)

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Cross-entropy. Rows labelled -100 are ignored."""
        return cross_entropy(logits, labels)

    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """One scalar for each class, or for drawn classes."""
        return class_scalars(logits, weight, random)
