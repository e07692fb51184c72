"""Certificates: an upper confidence bound of the loss on unseen data.

The budget is about unseen data, so the bound must be within the limit, not the observed loss:

    P(true loss <= loss_upper) >= 1 - alpha,    certified if loss_upper <= limit.

The loss is that of paired predictions, dense against optimised on the same rows. Bounds:

- accuracy: Tango's score bound for the difference of paired shares, with a continuity
  correction, see `accuracy_upper`.
- agreement of sequence tasks: Clopper-Pearson on the share of changed answers, exact, see
  `clopper_pearson_upper`.
- means of a score in [0, 1], such as nDCG of each query: by betting, exact, see
  `betting_upper`.
- all others: a paired bootstrap over rows, approximate, see `_bootstrap_upper`.

Several candidates are tested by fixed-sequence testing, as in Learn-then-Test
(https://arxiv.org/abs/2110.01052), see `fixed_sequence`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.metrics import Metric, Predictions, Scorer
from prumux.optimizer.tasks.task import Task

from .betting import betting_upper
from .confidence_bounds import (
    accuracy_upper,
    clopper_pearson_upper,
    few_errors_upper,
    unseen_errors,
)
from .design_effect import Ints, design_effect, linked_design_effect, resamples
from .stratified import stratified_upper

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Certificate:
    """The result on `rows` rows that no choice was made on. Scores are in [-1, 1].

    Where scores are taken by query, `rows` counts queries.
    """

    metric: str
    rows: int
    score_dense: float
    score: float
    loss: float
    """`score_dense - score`; negative if the optimised model is better."""
    loss_upper: float
    """The true loss is below this with `confidence`, one-sided."""
    confidence: float
    limit: float
    method: str

    @property
    def holds(self) -> bool:
        """True if the bound is within the limit."""
        return self.loss_upper <= self.limit

    @property
    def rows_that_would_do(self) -> int | None:
        """About the rows that a loss like this one needs; None if no number is enough.

        The distance of a bound from the loss falls with the square root of the rows.
        """
        if self.loss >= self.limit:
            return None
        wide = (self.loss_upper - self.loss) / (self.limit - self.loss)
        return math.ceil(self.rows * wide * wide)

    def to_json(self) -> dict[str, Any]:
        """All fields and `holds`, as plain values."""
        return {**asdict(self), "holds": self.holds}


def certify(  # noqa: PLR0917 - a certificate depends on all of them
    metric: str,
    dense: Predictions,
    optimised: Predictions,
    labels: Predictions | None,
    task: Task,
    limit: float,
    confidence: float = 0.95,
    seed: int = 0,
    *,
    groups: Ints | None = None,
) -> Certificate:
    """Bound the loss of the optimised model from above, rows paired.

    The metric's statistic decides how. `paired` with labels: Tango's score bound, corrected,
    see `accuracy_upper`. `paired` with the dense model's predictions as labels:
    Clopper-Pearson on the share of changed rows. `stratified`: the first bound for each class,
    combined, see `stratified_upper`. `mean`: by betting, see `betting_upper`. `bootstrap`:
    paired bootstrap over rows, see `_bootstrap_upper`.

    Args:
        metric: name of one of `task.metrics`.
        dense, optimised: predictions on the same N rows.
        labels: same form; not used by metrics that need none.
        task: what the labels mean.
        limit: the allowed loss in the metric's units; relative budgets are converted already.
        confidence: one-sided.
        seed: of the bootstrap.
        groups: number of each row's group of multiplexed rows, from 0, [N]; a group counts
            as one draw, or its rows are divided by the `design_effect`. None = no groups.

    Raises:
        UsageError: the metric does not fit the task.
        DataError: no rows, different numbers of rows, or missing labels.
    """
    chosen = task.metric(metric)
    truth = labels if chosen.needs_labels else dense
    if truth is None:
        raise DataError(
            f"certifying '{metric}' needs labels, the rows have none: use --metric agreement"
        )
    _same_rows(dense, optimised, truth)
    rows = len(dense)
    score_dense = task.score(metric, dense, truth) if chosen.needs_labels else 1.0
    score_optimised = task.score(metric, optimised, truth)
    loss = score_dense - score_optimised
    paired = _Paired(metric, dense, optimised, truth, task)
    if chosen.statistic == "mean":
        upper, rows = _mean_upper(chosen, paired, confidence, groups)
        method = "betting"
    elif chosen.statistic != "bootstrap":
        upper, method = _exact_upper(chosen, paired, confidence, groups)
    else:
        upper = _bootstrap_upper(paired, loss, confidence, seed, groups)
        method = "bootstrap"
    return Certificate(
        metric, rows, score_dense, score_optimised, loss, upper, confidence, limit, method
    )


def _exact_upper(
    metric: Metric, paired: _Paired, confidence: float, groups: Ints | None
) -> tuple[float, str]:
    """The bound of a metric that counts rows, and its name."""
    before, after = (
        paired.task.right_rows(x, paired.labels) for x in (paired.dense, paired.optimised)
    )
    lost, won = before & ~after, ~before & after
    if metric.statistic == "stratified":
        bound = partial(accuracy_upper, confidence=confidence)
        classes = np.asarray(paired.labels)
        return stratified_upper(classes, lost, won, bound, groups), "stratified tango"
    shrink = 1.0 if groups is None else design_effect(lost.astype(float) - won, groups)
    rows, worse, better = (float(x) / shrink for x in (len(lost), lost.sum(), won.sum()))
    if metric.needs_labels:
        return accuracy_upper(rows, worse, better, confidence), "tango"
    return clopper_pearson_upper(rows, worse, confidence), "clopper-pearson"


def _mean_upper(
    metric: Metric, paired: _Paired, confidence: float, groups: Ints | None
) -> tuple[float, int]:
    """The bound of a mean of bounded scores, and of how many scores.

    Where rows of several queries share a pass, the evidence counts as that of fewer queries.
    """
    before, after = (
        paired.task.row_scores(paired.metric, x, paired.labels)
        for x in (paired.dense, paired.optimised)
    )
    losses, effect = before - after, 1.0
    if groups is not None:
        of = paired.task.draws(paired.dense)
        of = np.arange(len(groups)) if of is None else of
        effect = float(np.bincount(groups).max())  # the largest possible one
        if len(losses) == int(of.max()) + 1:
            effect = linked_design_effect(losses, of, groups)
    least = -1.0 if metric.needs_labels else 0.0  # the dense model agrees with itself
    return betting_upper(losses, confidence, least, effect), len(losses)


def _same_rows(dense: Predictions, optimised: Predictions, labels: Predictions) -> None:
    counts = (len(dense), len(optimised), len(labels))
    if len(set(counts)) > 1:
        raise DataError(
            f"{counts[0]} dense and {counts[1]} optimised predictions for {counts[2]} labels: "
            "all must be of the same rows"
        )
    if not counts[0]:
        raise DataError("0 rows to certify on: give labelled rows, see --data")


class _Paired(NamedTuple):
    metric: str
    dense: Predictions
    optimised: Predictions
    labels: Predictions
    task: Task

    def loss_scorer(self) -> Scorer:
        before = self.task.scorer(self.metric, self.dense, self.labels)
        after = self.task.scorer(self.metric, self.optimised, self.labels)
        return lambda weights: before(weights) - after(weights)


def _bootstrap_upper(
    paired: _Paired, loss: float, confidence: float, seed: int, groups: Ints | None
) -> float:
    """Upper bound of the loss by paired bootstrap over rows, or over groups of rows.

    Its spread is (percentile - loss) / z, times t / z with Student's t of n - 1 degrees of
    freedom, because the percentile alone is too small for few rows. `few_errors_upper` adds
    what a bootstrap cannot see: errors that occurred rarely or never in the sample.

    With 2 to 50 % positives, 436 to 2,000 rows and errors of one or of both kinds, simulated
    bounds of F1, macro F1 and Matthews correlation were too low in at most 3.2 % of 600
    samples; the percentile alone was in up to 82 % (`bench/rare_classes.py`).
    """
    from scipy.stats import t

    loss_of, rows = paired.loss_scorer(), len(paired.dense)
    units = rows if groups is None else int(groups.max()) + 1
    losses = np.concatenate([loss_of(w) for w in resamples(rows, seed, groups)])
    z = NormalDist().inv_cdf(confidence)
    stretch = float(t.ppf(confidence, max(units - 1, 1))) / z
    spread = max(float(np.quantile(losses, confidence)) - loss, 0.0) * stretch / z
    unseen = unseen_errors(confidence)
    step = max(_worst_case(paired, unseen) - loss, 0.0) / unseen
    return min(few_errors_upper(loss, spread, step, confidence), 2.0)


def _worst_case(paired: _Paired, extra: float) -> float:
    """The loss with `extra` more rows that only the dense model has right, the worst case."""
    metric, dense, optimised, labels, task = paired
    worst = task.worst_case(metric, dense, optimised, labels, extra)
    more = _Paired(metric, worst.dense, worst.optimised, worst.labels, task)
    return float(more.loss_scorer()(worst.weights).max())


def interval(  # noqa: PLR0917 - as `certify`
    metric: str,
    predictions: Predictions,
    labels: Predictions,
    task: Task,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Two-sided confidence interval of one score, for reports.

    Wilson's for metrics with the statistic `paired`, which are shares of rows, else the
    percentiles of a bootstrap over rows. Arguments and errors as `Task.scorer`.
    """
    _same_rows(predictions, predictions, labels)
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    if task.metric(metric).statistic == "paired":
        n, share = len(predictions), task.score(metric, predictions, labels)
        centre = (share + z * z / (2 * n)) / (1 + z * z / n)
        spread = math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2) / (1 + z * z / n) * z
        return max(centre - spread, 0.0), min(centre + spread, 1.0)
    one = task.scorer(metric, predictions, labels)
    drawn = resamples(len(predictions), seed, task.draws(predictions))
    scores = np.concatenate([one(w) for w in drawn])
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def fixed_sequence(certificates: Iterable[Certificate]) -> int:
    """Index of the last certificate before the first failure; -1 if the first one fails.

    Fixed-sequence testing, as in Learn-then-Test (https://arxiv.org/abs/2110.01052): order the
    candidates on other rows, from the safest to the fastest, and stop at the first failure.
    To accept a bad candidate, the first bad one of the order must pass its test. That single
    test errs with probability at most alpha = 1 - confidence, so the whole sequence does, and
    no correction for the number of candidates is needed. This is valid only if the order does
    not depend on these rows and no candidate is tested after a failure. The certificates are
    consumed lazily, so none is made after the first failure.
    """
    last = -1
    for i, certificate in enumerate(certificates):
        if not certificate.holds:
            break
        last = i
    return last
