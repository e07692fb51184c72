"""Scores of predictions. One weighted form serves plain scores and the bootstrap alike.

Axis letters: N rows, R resamples, C classes, T positions of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.model.ir import Task

Predictions = NDArray[Any] | tuple[NDArray[Any], ...]
"""Class ids [N], float scores [N], or per row the class ids at its labelled positions."""

Floats = NDArray[np.float64]
Scorer = Callable[[Floats], Floats]

IGNORE = -100
"""The label of a position that is not scored."""

METRICS = (
    "accuracy",
    "balanced-accuracy",
    "macro-f1",
    "f1",
    "matthews_correlation",
    "pearson",
    "spearmanr",
    "agreement",
)

_SPAN_TAG = re.compile(r"O|[BIES]-.+")


def bio_like(task: Task) -> bool:
    """Whether the labels are BIO or IOBES tags, so that spans can be scored."""
    return all(_SPAN_TAG.fullmatch(x) for x in task.labels) and any(
        x != "O" for x in task.labels
    )


def metrics_of(task: Task) -> tuple[str, ...]:
    """The metrics that fit the task."""
    if task.kind == "token-classification":
        return ("accuracy", "f1", "agreement") if bio_like(task) else ("accuracy", "agreement")
    if task.problem == "regression":
        return ("pearson", "spearmanr", "agreement")
    return (
        "accuracy",
        "balanced-accuracy",
        "macro-f1",
        "f1",
        "matthews_correlation",
        "agreement",
    )


def default_metric(task: Task) -> str:
    """Accuracy; pearson for regression; span F1 for BIO-like token tasks."""
    if task.problem == "regression":
        return "pearson"
    return "f1" if task.kind == "token-classification" and bio_like(task) else "accuracy"


def check_metric(metric: str, task: Task) -> None:
    """Raise UsageError if the metric does not fit the task."""
    fit = metrics_of(task)
    if metric not in fit:
        what = "regression" if task.problem == "regression" else task.kind
        raise UsageError(
            f"metric '{metric}' does not fit {what} with {len(task.labels)} labels; "
            f"these do: {', '.join(fit)}: write, say, --metric {default_metric(task)}"
        )


def predictions_of(
    logits: NDArray[Any] | Sequence[NDArray[Any]],
    task: Task,
    labels: Sequence[NDArray[Any]] | None = None,
) -> Predictions:
    """Turn logits into predictions.

    Args:
        logits: [N, C]; for token tasks per row [T, C].
        task: what the labels mean.
        labels: token tasks: per row [T] label ids (-100 = not scored) or a bool mask of
            the positions that count; None = all positions.
    """
    if task.kind == "token-classification":
        rows = [np.asarray(x).argmax(-1) for x in logits]
        if labels is None:
            return tuple(rows)
        pairs = zip(rows, labels, strict=True)
        return tuple(r[: len(x)][x if x.dtype == bool else x != IGNORE] for r, x in pairs)
    values = np.asarray(logits)
    if task.problem == "regression":
        return np.asarray(values.reshape(len(values), -1)[:, 0], dtype=np.float64)
    return np.asarray(values.argmax(-1))


def score(metric: str, predictions: Predictions, labels: Predictions, task: Task) -> float:
    """The score in [-1, 1].

    Args:
        metric: one of `metrics_of(task)`.
        predictions: see `Predictions`.
        labels: the same form; for token tasks -100 may still be in it. For `agreement`
            the dense model's predictions.
        task: what the labels mean.

    Raises:
        UsageError: the metric does not fit the task.
        DataError: there are more or fewer predictions than labels.
    """
    return float(scorer(metric, predictions, labels, task)(np.ones((1, len(predictions))))[0])


def scorer(metric: str, predictions: Predictions, labels: Predictions, task: Task) -> Scorer:
    """As `score`, for many weightings of the same rows: a function of weights [R, N] -> [R].

    Row i counts `weights[r, i]` times; a resample with replacement is such a weighting.
    """
    check_metric(metric, task)
    if len(predictions) != len(labels):
        raise DataError(f"{len(predictions)} predictions for {len(labels)} labels")
    if task.kind == "token-classification":
        return _token_scorer(metric, predictions, labels, task)
    p, y = np.asarray(predictions), np.asarray(labels)
    if task.problem == "regression":
        if metric == "spearmanr":
            p_rank, y_rank = _ranker(p), _ranker(y)
            return lambda w: _correlation(p_rank(w), y_rank(w), w)
        p, y = _centred(p)[None], _centred(y)[None]
        return lambda w: _correlation(p, y, w)
    if metric in ("accuracy", "agreement"):
        same = (p == y).astype(np.float64)
        return lambda w: _ratio(w @ same, w.sum(1))
    return _class_scorer(metric, p, y, len(task.labels))


def _class_scorer(metric: str, p: NDArray[Any], y: NDArray[Any], classes: int) -> Scorer:
    ids = np.arange(classes)
    in_p = (p[:, None] == ids).astype(np.float64)  # (N, C)
    in_y = (y[:, None] == ids).astype(np.float64)
    in_both = in_p * in_y

    def scores(weights: Floats) -> Floats:
        hits, found, true = weights @ in_both, weights @ in_p, weights @ in_y  # (R, C)
        # As scikit-learn: a mean over classes is over those that occur, as a label for
        # recalls, as a label or an answer for F1.
        if metric == "balanced-accuracy":
            return _ratio(_ratio(hits, true).sum(1), (true > 0).sum(1))
        if metric in ("f1", "macro-f1"):
            f1 = _ratio(2 * hits, found + true)
            if metric == "f1" and classes == 2:
                return f1[:, 1]
            return _ratio(f1.sum(1), (found + true > 0).sum(1))
        total = weights.sum(1)
        top = hits.sum(1) * total - (found * true).sum(1)
        spread = (total**2 - (found**2).sum(1)) * (total**2 - (true**2).sum(1))
        return _ratio(top, np.sqrt(np.maximum(spread, 0)))

    return scores


def _ratio(top: Floats, bottom: NDArray[Any]) -> Floats:
    out: Floats = np.divide(top, bottom, out=np.zeros(top.shape), where=bottom > 0)
    return out


def _centred(x: NDArray[Any]) -> Floats:
    # A shift changes no correlation and keeps the sums of squares exact.
    return np.asarray(x, dtype=np.float64) - (float(np.mean(x)) if len(x) else 0.0)


def _correlation(x: Floats, y: Floats, weights: Floats) -> Floats:
    """Weighted Pearson of x, y [R or 1, N]; 0 where either is constant."""
    total = weights.sum(1, keepdims=True)
    dx = x - _ratio((weights * x).sum(1, keepdims=True), total)
    dy = y - _ratio((weights * y).sum(1, keepdims=True), total)
    sxx, syy = (weights * dx * dx).sum(1), (weights * dy * dy).sum(1)
    # Rounding leaves a constant column a spread that is not quite zero.
    real = (sxx > 1e-20 * (weights * x * x).sum(1)) & (syy > 1e-20 * (weights * y * y).sum(1))
    r = _ratio((weights * dx * dy).sum(1), np.where(real, np.sqrt(sxx) * np.sqrt(syy), 0.0))
    return np.clip(r, -1.0, 1.0)


def _ranker(x: NDArray[Any]) -> Scorer:
    """Weights [R, N] -> centred mean ranks [R, N] of x when value i occurs w[r, i] times."""
    _, group = np.unique(x, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))

    def ranks(weights: Floats) -> Floats:
        sizes = np.add.reduceat(weights[:, order], starts, axis=1)  # (R, groups)
        mean_rank = np.cumsum(sizes, axis=1) - (sizes - 1) / 2
        centre = (weights.sum(1, keepdims=True) + 1) / 2
        return np.asarray(mean_rank[:, group] - centre)

    return ranks


def _token_scorer(
    metric: str, predictions: Predictions, labels: Predictions, task: Task
) -> Scorer:
    counts = np.zeros((len(labels), 3))  # hits, found, true of each row
    for i, (p, y) in enumerate(zip(predictions, labels, strict=True)):
        kept = y[y != IGNORE]
        if len(p) != len(kept):
            raise DataError(f"row {i + 1}: {len(p)} predictions for {len(kept)} labels")
        if metric == "f1":
            found, true = spans(p, task.labels), spans(kept, task.labels)
            counts[i] = len(found & true), len(found), len(true)
        else:
            counts[i] = int((p == kept).sum()), len(p), len(kept)

    def scores(weights: Floats) -> Floats:
        sums = weights @ counts
        return _ratio(2 * sums[:, 0], sums[:, 1] + sums[:, 2])

    return scores


def spans(ids: NDArray[Any], labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """The (type, first, last) spans of one row, by the rules of conlleval and seqeval."""
    tags = [labels[int(x)] for x in ids]
    found: set[tuple[str, int, int]] = set()
    previous, kind, start = "O", "", 0
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if previous != "O" and (previous in "ES" or mark in "BSO" or name != kind):
            found.add((kind, start, i - 1))
        if mark != "O" and (mark in "BS" or previous in "ESO" or name != kind):
            start = i
        previous, kind = mark, name
    return found
