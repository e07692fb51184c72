"""The `Metric` type, and the scores that tasks choose from.

A `Scorer` maps row weights to scores. Plain scores and the bootstrap both use it.
Axis letters: N rows, R weightings, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Predictions = NDArray[Any] | tuple[NDArray[Any], ...]
"""The predictions of N rows, in the form of the task.

- classes: class ids [N];
- scores: floats [N];
- labelled positions: one array of class ids per row;
- embeddings: vectors [N, D], pairs of vectors [N, 2, D], or numbers of found documents [N, K].
"""

Floats = NDArray[np.float64]
Scorer = Callable[[Floats], Floats]
"""Weights [R, N] -> scores [R]."""

Statistic = Literal["paired", "stratified", "mean", "bootstrap"]
"""The statistic that bounds the loss of a metric (see `certificate/certificate.py`).

- paired: the score is the share of right rows. The bound follows from the numbers of rows that
  only one of the two models answers correctly.
- stratified: the score is the mean recall of the classes. Each class has its own paired bound.
- mean: the score is the mean of one score in [0, 1] for each query or row. An exact bound
  follows from the differences of these scores.
- bootstrap: any other score. Resamples of the rows bound the loss approximately.
"""


@dataclass(frozen=True)
class Metric:
    """A metric of a task."""

    name: str
    statistic: Statistic = "bootstrap"
    needs_labels: bool = True
    """False if the given model's predictions replace labels. The given model then scores 1."""
    counts_answers: bool = False
    """True if the score is the share of right answers. Rare classes then hardly count."""
    classes_alike: bool = False
    """True if every class has the same weight, however rare it is."""


AGREEMENT = "agreement"
"""The metric that needs no labels. Every task has it."""


def ratio(top: Floats, bottom: NDArray[Any]) -> Floats:
    """`top / bottom`; 0 if `bottom` is not positive."""
    out: Floats = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)
    return out


def share(hits: NDArray[Any]) -> Scorer:
    """The weighted mean of `hits`, [N], one value for each row."""
    values = hits.astype(np.float64)
    return lambda w: ratio(w @ values, w.sum(1))


def f1_of_counts(counts: Floats) -> Scorer:
    """F1 = 2 hits / (found + true), summed over rows. `counts`, [N, 3]: hits, found, true."""

    def scores(weights: Floats) -> Floats:
        sums = weights @ counts
        return ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])

    return scores


def f1_of_one(p: NDArray[Any], y: NDArray[Any]) -> Scorer:
    """F1 of class 1 out of two classes. Arguments as in `macro_f1`."""
    counted = _class_counts(p, y, 2)

    def scores(weights: Floats) -> Floats:
        hits, found, true = counted(weights)
        f1: Floats = ratio(2 * hits, found + true)[:, 1]
        return f1

    return scores


def macro_f1(p: NDArray[Any], y: NDArray[Any], classes: int) -> Scorer:
    """Mean F1 of the classes that occur as a label or as an answer, as in scikit-learn.

    Args:
        p, y: predicted and true class ids, [N].
        classes: C, the number of classes.
    """
    counted = _class_counts(p, y, classes)

    def scores(weights: Floats) -> Floats:
        hits, found, true = counted(weights)
        f1 = ratio(2 * hits, found + true)
        return ratio(f1.sum(1), (found + true > 0).sum(1))

    return scores


def macro_f1_of_sets(p: NDArray[Any], y: NDArray[Any]) -> Scorer:
    """Mean F1 of the labels that occur in the truth or the answers; p, y: 0 or 1, [N, C]."""
    in_p, in_y = p.astype(np.float64), y.astype(np.float64)
    in_both = in_p * in_y

    def scores(weights: Floats) -> Floats:
        hits, both = weights @ in_both, weights @ (in_p + in_y)
        return ratio(ratio(2 * hits, both).sum(1), (both > 0).sum(1))

    return scores


def balanced_accuracy(p: NDArray[Any], y: NDArray[Any], classes: int) -> Scorer:
    """Mean recall of the classes that occur as a label. Arguments as in `macro_f1`."""
    counted = _class_counts(p, y, classes)

    def scores(weights: Floats) -> Floats:
        hits, _, true = counted(weights)
        return ratio(ratio(hits, true).sum(1), (true > 0).sum(1))

    return scores


def matthews(p: NDArray[Any], y: NDArray[Any], classes: int) -> Scorer:
    """Matthews correlation for any number of classes. Arguments as in `macro_f1`."""
    counted = _class_counts(p, y, classes)

    def scores(weights: Floats) -> Floats:
        hits, found, true = counted(weights)
        total = weights.sum(1)
        top = hits.sum(1) * total - (found * true).sum(1)
        spread = (total**2 - (found**2).sum(1)) * (total**2 - (true**2).sum(1))
        return ratio(top, np.sqrt(np.maximum(spread, 0)))

    return scores


def _class_counts(
    p: NDArray[Any], y: NDArray[Any], classes: int
) -> Callable[[Floats], tuple[Floats, Floats, Floats]]:
    """Weights [R, N] -> weighted counts of hits, predictions and labels: [R, C] each."""
    ids = np.arange(classes)
    in_p = (p[:, None] == ids).astype(np.float64)  # (N, C)
    in_y = (y[:, None] == ids).astype(np.float64)
    in_both = in_p * in_y
    return lambda w: (w @ in_both, w @ in_p, w @ in_y)


def pearson(p: NDArray[Any], y: NDArray[Any]) -> Scorer:
    """Pearson's correlation of two columns [N]; 0 if one is constant."""
    p, y = _centred(p)[None], _centred(y)[None]
    return lambda w: _correlation(p, y, w)


def spearman(p: NDArray[Any], y: NDArray[Any]) -> Scorer:
    """Spearman's rank correlation of two columns [N]; 0 if one is constant."""
    p_rank, y_rank = _ranker(p), _ranker(y)
    return lambda w: _correlation(p_rank(w), y_rank(w), w)


def _centred(x: NDArray[Any]) -> Floats:
    # Subtracting the mean changes no correlation and keeps the sums of squares exact.
    return np.asarray(x, dtype=np.float64) - (float(np.mean(x)) if len(x) else 0.0)


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted Pearson correlation of x and y, [R or 1, N]; 0 if one is constant."""
    total = weights.sum(1, keepdims=True)
    dx = x - ratio((weights * x).sum(1, keepdims=True), total)
    dy = y - ratio((weights * y).sum(1, keepdims=True), total)
    sxx, syy = (weights * dx * dx).sum(1), (weights * dy * dy).sum(1)
    # Rounding can give a constant column a tiny spread above zero.
    real = (sxx > 1e-20 * (weights * x * x).sum(1)) & (syy > 1e-20 * (weights * y * y).sum(1))
    r = ratio((weights * dx * dy).sum(1), np.where(real, np.sqrt(sxx) * np.sqrt(syy), 0.0))
    return np.clip(r, -1.0, 1.0)


def _ranker(x: NDArray[Any]) -> Scorer:
    """Weights [R, N] -> centred mean ranks [R, N] of x, if value i occurs w[r, i] times."""
    _, group = np.unique(x, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(weights: Floats) -> Floats:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, groups)
        mean_rank = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
        centre = (weights.sum(1, keepdims=True) + 1) / 2
        return np.asarray(mean_rank[:, group] - centre)

    return ranks
