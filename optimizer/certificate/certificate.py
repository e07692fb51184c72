"""Certificates: an upper confidence bound of the loss on unseen data.

The budget limits the loss on unseen data. So the bound, not the observed loss, must be within
the limit:

    P(true loss <= loss_upper) >= 1 - alpha,    certified if loss_upper <= limit.

The given and the optimised model answer the same rows, so their predictions are paired. The
metric determines the bound:

- accuracy: Tango's score bound for the difference of paired shares, with a continuity
  correction, see `accuracy_upper`.
- agreement of sequence tasks: the exact Clopper-Pearson bound of the share of changed answers,
  see `clopper_pearson_upper`.
- means of a score in [0, 1], such as the nDCG of each query: the exact bound by betting, see
  `betting_upper`.
- all others: an approximate paired bootstrap over rows, see `_bootstrap_upper`.

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
    """Scores and loss on `rows` rows that the search did not use. Scores are in [-1, 1].

    For metrics with one score per query, `rows` counts queries.
    """

    metric: str
    rows: int
    score_dense: float
    score: float
    loss: float
    """`score_dense - score`; negative if the optimised model is better."""
    loss_upper: float
    """One-sided upper bound: the true loss is below it with probability `confidence`."""
    confidence: float
    limit: float
    method: str

    @property
    def holds(self) -> bool:
        """True if `loss_upper` is at most `limit`."""
        return self.loss_upper <= self.limit

    @property
    def rows_that_would_do(self) -> int | None:
        """Approximate number of rows that would certify this loss; None if no number would do.

        The distance between bound and loss shrinks with the square root of the rows.
        """
        if self.loss >= self.limit:
            return None
        wide = (self.loss_upper - self.loss) / (self.limit - self.loss)
        return math.ceil(self.rows * wide * wide)

    def to_json(self) -> dict[str, Any]:
        """All fields and `holds` as plain values."""
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
    """Compute an upper bound of the optimised model's loss from paired predictions.

    The metric's statistic determines the bound:

    - `paired` with labels: Tango's score bound, corrected, see `accuracy_upper`.
    - `paired` with the given model's predictions as labels: Clopper-Pearson on the share of
      changed rows.
    - `stratified`: `accuracy_upper` for each class, combined, see `stratified_upper`.
    - `mean`: a bound by betting, see `betting_upper`.
    - `bootstrap`: a paired bootstrap over rows, see `_bootstrap_upper`.

    Args:
        metric: name of one of `task.metrics`.
        dense, optimised: predictions of the given and the optimised model on the same N rows.
        labels: the labels, in the form of predictions. Metrics without labels ignore them.
        task: the meaning of the labels.
        limit: the allowed loss in the metric's units. The caller converts a relative budget.
        confidence: one-sided.
        seed: the seed of the bootstrap.
        groups: the group of multiplexed rows that each row is in, numbered from 0, [N]. The
            bootstrap draws whole groups; the other bounds use a design effect, see
            `design_effect`. None = no groups.

    Raises:
        UsageError: the metric does not fit the task.
        DataError: there are no rows, the numbers of rows differ, or labels are missing.
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
    """The bound of a metric that counts rows, and the name of the bound."""
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
    """The bound of a mean of bounded scores, and the number of scores.

    If rows of several queries share a forward pass, the queries are counted as fewer queries.
    """
    before, after = (
        paired.task.row_scores(paired.metric, x, paired.labels)
        for x in (paired.dense, paired.optimised)
    )
    losses, effect = before - after, 1.0
    if groups is not None:
        of = paired.task.draws(paired.dense)
        of = np.arange(len(groups)) if of is None else of
        effect = float(np.bincount(groups).max())  # the largest possible effect
        if len(losses) == int(of.max()) + 1:
            effect = linked_design_effect(losses, of, groups)
    least = -1.0 if metric.needs_labels else 0.0  # the given model agrees with itself
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

    The spread is (percentile - loss) / z, multiplied by t / z. Here z is the normal quantile,
    and t the quantile of Student's t with n - 1 degrees of freedom. The factor t / z is needed
    because the percentile alone is too small for few rows. A bootstrap also misses errors that
    occurred rarely or never in the sample. `few_errors_upper` makes the bound wider for such
    errors.

    Simulation (`bench/rare_classes.py`): bounds of F1, macro F1 and Matthews correlation, with
    2 to 50 % positives, 436 to 2,000 rows and errors of one or of both kinds. At most 3.2 % of
    600 bounds were too low. Without these two corrections, up to 82 % of the bounds were too
    low.
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
    """The largest loss after `extra` more rows that only the given model answers correctly."""
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

    For metrics with the statistic `paired`, which are shares of rows, this is Wilson's
    interval. For other metrics, it consists of percentiles of a bootstrap over rows. Arguments
    and errors are those of `Task.scorer`.
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

    Fixed-sequence testing, as in Learn-then-Test (https://arxiv.org/abs/2110.01052), orders
    the candidates from the safest to the fastest, by their results on other rows, and stops at
    the first failure. A bad candidate is accepted only if the first bad candidate of the order
    passes its test. This single test errs with probability at most alpha = 1 - confidence, so
    the whole sequence errs with probability at most alpha. No correction for the number of
    candidates is needed.

    The test is valid only if the order does not depend on the certify rows, and if no
    candidate is tested after a failure. The certificates are consumed lazily: none is computed
    after the first failure.
    """
    last = -1
    for i, certificate in enumerate(certificates):
        if not certificate.holds:
            break
        last = i
    return last
