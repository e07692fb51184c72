"""Checks that the metric separates the given model from a constant answer.

If a constant answer meets the budget, the budget would certify a useless model. So the best
constant answer is scored on the same rows before the search starts.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.tasks.label_order import LabelOrder, explained, sign_test
from prumux.optimizer.tasks.metrics import Predictions
from prumux.optimizer.tasks.task import ConstantAnswer, Task

from .budget import Budget

NEAR = 2.0
"""A warning is printed if a constant answer loses less than twice the limit. A model at the
limit may then have lost half of the given model's lead over the constant answer."""
FEW_ROWS = 30
"""With fewer rows of a class, figures of this class alone are very rough."""
MISFIT = 0.01
"""Error level of the misfit test: a model that is no worse than any constant answer is called
a misfit with a probability of at most 1 %."""


@dataclass(frozen=True)
class Judged:
    """The given model's predictions on rows, with or without labels, and the metric."""

    dense: Predictions
    labels: Predictions | None
    task: Task
    metric: str
    role: str
    """The role of the rows: certify or select."""

    @property
    def truth(self) -> Predictions:
        """The labels; without labels, or for agreement, the given model's predictions."""
        needs_labels = self.task.metric(self.metric).needs_labels
        return self.dense if self.labels is None or not needs_labels else self.labels

    @property
    def score(self) -> float:
        """The given model's score."""
        if not self.task.metric(self.metric).needs_labels:
            return 1.0
        return self.task.score(self.metric, self.dense, self.truth)

    @property
    def answers(self) -> NDArray[Any]:
        """All answers of the given model in one array."""
        return self.task.all_answers(self.dense)

    @property
    def flat_labels(self) -> NDArray[Any]:
        """All labels in one array. The rows must have labels."""
        assert self.labels is not None
        return self.task.all_answers(self.labels)

    def by(self, metric: str) -> Judged:
        """The same predictions with another metric."""
        return Judged(self.dense, self.labels, self.task, metric, self.role)


def best_constant(judged: Judged) -> ConstantAnswer:
    """The constant answer with the best score against `judged.truth`."""
    return judged.task.best_constant(judged.metric, judged.truth)


def check(judged: Judged, budget: Budget | None, confirmed: bool = False) -> list[str]:
    """Warnings about metric, budget and rows, one line each.

    Args:
        judged: the given model on the certify rows.
        budget: None = nothing is certified.
        confirmed: True if the user gave the meaning of the labels. Another label order then
            causes a warning instead of an error.

    Raises:
        UsageError: a constant answer meets the budget, or the labels do not fit the model.
    """
    constant, dense = best_constant(judged), judged.score
    below = dense < constant.score
    limit = 0.0 if budget is None else budget.limit(dense)
    loss = dense - constant.score
    kept = limit > 0 and loss <= limit
    warnings = _order(judged, constant, (below or kept) and not confirmed, confirmed)
    if kept and budget is not None:
        raise UsageError(_refused(judged, constant, budget))
    if below:
        if _misfit(judged):
            raise UsageError(_no_better(judged, constant))
        warnings.append(f"{_both(judged, constant)}: {judged.metric} tells little here")
    elif loss < NEAR * limit:
        warnings.append(
            f"{_both(judged, constant)}: the budget {budget} is over half of the way there"
            f"{_instead(judged, budget)}"
        )
    elif limit > 0:
        warnings += _classes_that_may_go(judged, limit)
    return warnings + _rare(judged)


def _order(
    judged: Judged, constant: ConstantAnswer, useless: bool, confirmed: bool
) -> list[str]:
    """Raise an error or warn if the labels fit the model far better in another order."""
    if judged.labels is None or not judged.task.exclusive:
        return []
    order = explained(judged.answers, judged.flat_labels, judged.task)
    if order is None:
        return []
    # True if the other order has at most half of the mistakes. If the model is merely weak, no
    # order has so few.
    halved = 2 * (1 - order.accuracy) <= 1 - order.accuracy_as_read
    if judged.task.metric(judged.metric).needs_labels and (
        useless or (halved and not confirmed)
    ):
        raise UsageError(_reordered(judged, constant, order))
    return [_maybe_reordered(judged, order, confirmed)]


def select_warnings(judged: Judged, budget: Budget) -> list[str]:
    """Warn if a constant answer meets the budget on the select rows.

    The search compares candidates on these rows; the certify rows decide.
    """
    constant, dense = best_constant(judged), judged.score
    if dense - constant.score > budget.limit(dense):
        return []
    return [
        f"{_both(judged, constant)}: the search cannot tell there what keeps the budget "
        f"{budget}; the certify rows still decide"
    ]


def _misfit(judged: Judged) -> bool:
    """True if the model is worse than a constant answer and unrelated to the labels.

    An exact paired sign test compares the model with each class that occurs, corrected for the
    number of classes. A model that finds rare classes may have a lower accuracy than a
    constant answer, so the answers must also be unrelated to the labels.
    """
    if judged.labels is None or not judged.task.exclusive:
        return not _knows(judged)
    answers, labels = judged.answers, judged.flat_labels
    right, classes = answers == labels, np.unique(labels)
    worse = any(
        sign_test(int((~right & (labels == c)).sum()), int((right & (labels != c)).sum()))
        <= MISFIT / len(classes)
        for c in classes
    )
    return worse and not _knows(judged)


def _related(
    answers: NDArray[Any], labels: NDArray[Any], classes: int, level: float = MISFIT
) -> bool:
    """True if there are significantly more right answers than with shuffled labels.

    The mean and the variance of the number of right answers over all orders of the labels are
    exact. The normal distribution of this number is an approximation. For several labels per
    row, [N, C], each label is tested at `level` / C, and one related label is enough.
    """
    if answers.ndim == 2:
        pairs = zip(answers.T, labels.T, strict=True)
        return any(_related(p, y, 2, level / len(answers.T)) for p, y in pairs)
    n = len(labels)
    found = np.bincount(answers, minlength=classes).astype(float)
    true = np.bincount(labels, minlength=classes).astype(float)
    both = found * true
    mean = float(both.sum() / n)
    squares = float(both.sum() - (both * (found + true)).sum() / n + mean**2)
    spread = math.sqrt(max(squares, 0.0) / max(n - 1, 1))
    over = float((answers == labels).sum() - mean)
    return over > NormalDist().inv_cdf(1 - level) * spread


def _points(share: float) -> str:
    return f"{100 * share:.2f}"


def _both(judged: Judged, constant: ConstantAnswer) -> str:
    rows = f"{len(judged.dense)} {judged.role} rows"
    return (
        f"always answering {constant.answer} scores {_points(constant.score)} "
        f"{judged.metric} on the {rows}, the given model {_points(judged.score)}"
    )


def _telling(judged: Judged, budget: Budget) -> list[tuple[str, float, ConstantAnswer]]:
    """Metrics by which no constant answer meets the budget, with both scores."""
    found = []
    for metric in judged.task.fitting(judged.labels):
        other = judged.by(metric.name)
        if metric.name == judged.metric or (judged.labels is None and metric.needs_labels):
            continue
        constant, dense = best_constant(other), other.score
        if dense - constant.score > budget.limit(dense):
            found.append((metric.name, dense, constant))
    return found


def _refused(judged: Judged, constant: ConstantAnswer, budget: Budget) -> str:
    said = f"{_both(judged, constant)}, so it keeps --budget {budget}"
    if judged.score < constant.score and not _knows(judged):
        return _no_better(judged, constant)
    found = _telling(judged, budget)
    if found:
        others = ", ".join(
            f"{metric} ({_points(dense)}, constant {_points(other.score)})"
            for metric, dense, other in found
        )
        return f"{said}\nby these metrics it does not: {others}\nwrite: --metric {found[0][0]}"
    loss = judged.score - constant.score
    lower = math.floor(1e4 * loss / NEAR + 1e-6) / 100
    if lower >= 0.01:
        return f"{said}\nno other metric tells them apart better\nwrite: --budget {lower:g}%"
    more = "rows of every class" if judged.labels is not None else "labelled rows, or rows"
    return f"{said}\nno metric tells them apart: give {more} that it answers otherwise"


def _knows(judged: Judged) -> bool:
    """True if the model's answers are related to the labels at all."""
    if judged.labels is None or not judged.task.has_classes:
        return judged.score >= best_constant(judged).score
    return _related(judged.answers, judged.flat_labels, len(judged.task.labels))


def _instead(judged: Judged, budget: Budget | None) -> str:
    found = _telling(judged, budget) if budget is not None else []
    return f"; consider --metric {found[0][0]}" if found else ""


def _no_better(judged: Judged, constant: ConstantAnswer) -> str:
    column = judged.task.columns[0]
    return (
        f"{_both(judged, constant)}: the labels do not fit the model's answers\n"
        f"name the right columns (--columns {column}=NAME text_a=NAME) or say what the "
        "labels mean (--labels 0=NAME ...);\nto leave the labels alone: --metric agreement"
    )


def _reordered(judged: Judged, constant: ConstantAnswer, order: LabelOrder) -> str:
    same = " ".join(shlex.quote(f"{read}={read}") for read, _ in order.moved)
    return (
        f"{_both(judged, constant)}\nthe classes seem to have another order: the model is "
        f"right on {_points(order.accuracy)} % of the rows, not "
        f"{_points(order.accuracy_as_read)} %, if {order.described}\nwrite: {order.option}\n"
        f"or, if the labels are right as they are: --labels {same}"
    )


def _maybe_reordered(judged: Judged, order: LabelOrder, confirmed: bool) -> str:
    cure = "" if confirmed else f"; write then: {order.option}"
    return (
        f"the given model would be right on {_points(order.accuracy)} % of the {judged.role} "
        f"rows, not {_points(order.accuracy_as_read)} %, if {order.described}{cure}"
    )


def _classes_that_may_go(judged: Judged, limit: float) -> list[str]:
    """A warning about classes so rare that a model may lose all of them within the budget."""
    if not judged.task.metric(judged.metric).counts_answers:
        return []
    found = judged.task.right_rows(judged.answers, judged.task.all_answers(judged.truth))
    truth = judged.task.all_answers(judged.truth)
    right = np.array(judged.task.label_counts(truth[found]))
    gone = [c for c in np.argsort(right, kind="stable") if 0 < right[c] <= limit * len(truth)]
    if not gone:
        return []
    names = _named([f"'{judged.task.labels[c]}' ({right[c]} right answers)" for c in gone])
    alike = [x.name for x in judged.task.metrics if x.classes_alike]
    cure = f"{' or '.join(alike)} count all classes alike" if alike else ""
    return [
        f"{judged.metric} stays inside the budget even if one of these classes is never "
        f"found: {names}; {cure or 'see the recall of each'}"
    ]


def _rare(judged: Judged) -> list[str]:
    """Warnings about classes with few or no rows; none for metrics that count answers."""
    metric = judged.task.metric(judged.metric)
    if metric.counts_answers or not judged.task.has_classes:
        return []
    if not isinstance(judged.labels, np.ndarray):
        return []
    counts = np.array(judged.task.label_counts(judged.flat_labels))
    few = [c for c in np.argsort(counts, kind="stable") if 0 < counts[c] < FEW_ROWS]
    none = [f"'{judged.task.labels[c]}'" for c in np.flatnonzero(counts == 0)]
    found = []
    if few:
        rows = _named([f"'{judged.task.labels[c]}' {counts[c]}" for c in few])
        rough = (
            "the bound is wide for that"
            if metric.statistic == "stratified"
            else f"the bound of {judged.metric} is approximate and may be too low"
        )
        found.append(f"few {judged.role} rows of some classes ({rows}): {rough}")
    if none:
        found.append(f"no {judged.role} rows of {_named(none)}: nothing is known of them")
    return found


def _named(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
