"""Does the loss stay inside the budget on data that nobody has looked at?

The promise is about unseen data, so it is the upper confidence bound of the loss that has to
be inside the limit, not the loss that was observed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from functools import partial
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.tasks.metrics import Metric, Predictions, Scorer
from prumux.optimizer.tasks.task import Task

from .design_effect import Ints, design_effect, resamples
from .stratified import stratified_upper

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Certificate:
    """What was found on `rows` rows that no choice was made on. Scores are in [-1, 1]."""

    metric: str
    rows: int
    score_dense: float
    score: float
    loss: float
    """`score_dense - score`; below 0 = the optimised model is better."""
    loss_upper: float
    """The true loss is below this with `confidence`, one-sided."""
    confidence: float
    limit: float
    method: str

    @property
    def holds(self) -> bool:
        """Whether the budget is kept."""
        return self.loss_upper <= self.limit

    def to_json(self) -> dict[str, Any]:
        """All fields and `holds`, as plain values."""
        return {**asdict(self), "holds": self.holds}


def certify(  # noqa: PLR0917 - who is compared on what, by which metric, within what
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
    combined, see `stratified_upper`. `bootstrap`: paired bootstrap over rows, see
    `_bootstrap_upper`.

    Args:
        metric: name of one of `task.metrics`.
        dense, optimised: predictions on the same N rows.
        labels: same form; not used by metrics that need none.
        task: what the labels mean.
        limit: the allowed loss in the metric's units; relative budgets are converted already.
        confidence: one-sided.
        seed: of the bootstrap.
        groups: which rows were mixed together, numbered from 0, [N]; those count as one
            draw, or as the rows that they are worth (`design_effect`). None = none were.

    Raises:
        UsageError: the metric does not fit the task.
        DataError: no rows, numbers of rows differ, or no labels where they are needed.
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
    if chosen.statistic != "bootstrap":
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


def _same_rows(dense: Predictions, optimised: Predictions, labels: Predictions) -> None:
    counts = (len(dense), len(optimised), len(labels))
    if len(set(counts)) > 1:
        raise DataError(
            f"{counts[0]} dense and {counts[1]} optimised predictions for {counts[2]} labels: "
            "all must be of the same rows"
        )
    if not counts[0]:
        raise DataError("0 rows to certify on: give labelled rows, see --data")


def tango_upper(rows: float, worse: float, better: float, confidence: float = 0.95) -> float:
    """One-sided upper bound of the loss of accuracy, by Tango's score test (1998).

    The loss d is not rejected while (worse - better - n d) / sqrt(n (2 q + d (1 - d))) > -z,
    with q the likeliest share of rows that got better, given d. With no row changed this is
    z^2 / (n + z^2). The counts may be fractions, for planning.

    An approximation, that covers too rarely where no row gets better: see `accuracy_upper`.

    Args:
        rows: n, all rows.
        worse: rows that only the dense model has right.
        better: rows that only the optimised model has right.
        confidence: one-sided.
    """
    z = NormalDist().inv_cdf(confidence)

    def rejected(d: float) -> bool:
        b = -worse - better + (2 * rows - worse + better) * d
        root = math.sqrt(max(b * b + 8 * rows * better * d * (1 - d), 0.0))
        q = max((root - b) / (4 * rows), 0.0)
        spread = math.sqrt(max(rows * (2 * q + d * (1 - d)), 0.0))
        return worse - better - rows * d < -z * spread

    return _crossing(rejected, (worse - better) / rows, 1.0)


def accuracy_upper(
    rows: float, worse: float, better: float, confidence: float = 0.95
) -> float:
    """The bound that accuracy is certified by: `tango_upper` with half a row more of loss.

    Where no row gets better, Tango's 95 % bound covers in as few as 92.8 % of runs at 50
    rows, 93.2 % at 200 and 93.3 % at 872 (exact, the worst of all true losses up to 0.1).
    With half a row more, a continuity correction, it is 96.5, 95.6 and 95.2 %, and at
    least 95 % up to a true loss of 0.5. Arguments as `tango_upper`.
    """
    return tango_upper(rows, min(worse + 0.5, rows), better, confidence)


def _crossing(above: Callable[[float], bool], low: float, high: float) -> float:
    """The smallest x at which the monotone `above` turns true, never too small."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return high


def clopper_pearson_upper(rows: float, changed: float, confidence: float = 0.95) -> float:
    """Exact one-sided upper bound of a share."""
    from scipy.stats import beta

    if changed >= rows:
        return 1.0
    return float(beta.ppf(confidence, changed + 1, rows - changed))


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
    """Upper bound of the loss by paired bootstrap over rows, or over groups of them.

    The percentile's distance from the loss is stretched by Student's t over the normal
    quantile, since the percentile is too short for few rows. And it is never below the loss
    with z^2 more rows that got worse (see `_imagined`): a bootstrap knows nothing of what did
    not occur, so few rows, or rows that all agree, would certify any budget.
    """
    from scipy.stats import t

    loss_of, rows = paired.loss_scorer(), len(paired.dense)
    units = rows if groups is None else int(groups.max()) + 1
    losses = np.concatenate([loss_of(w) for w in resamples(rows, seed, groups)])
    z = NormalDist().inv_cdf(confidence)
    stretch = float(t.ppf(confidence, max(units - 1, 1))) / z
    upper = loss + max(float(np.quantile(losses, confidence)) - loss, 0.0) * stretch
    return min(max(upper, _imagined(paired, z * z)), 2.0)


def _imagined(paired: _Paired, extra: float) -> float:
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
    scores = np.concatenate([one(w) for w in resamples(len(predictions), seed)])
    low, high = np.quantile(scores, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def provable_loss(
    rows: int, limit: float, disagreement: float = 0.05, confidence: float = 0.95
) -> float:
    """The largest observed loss of accuracy that so many rows can certify, for planning.

    Args:
        rows: how many rows there are to certify on.
        limit: the allowed loss.
        disagreement: the share of rows that is right in one model only; at least the loss.
        confidence: one-sided.

    Returns:
        The loss; below 0 = only a model that is better by so much can be certified; -1 =
        none can.
    """

    def fails(loss: float) -> bool:
        changed = max(disagreement, abs(loss))
        worse, better = rows * (changed + loss) / 2, rows * (changed - loss) / 2
        return rows < 1 or accuracy_upper(rows, worse, better, confidence) > limit

    if fails(-1.0):
        return -1.0
    # From above the smallest loss that fails; a hair less is certified.
    return max(_crossing(fails, -1.0, 1.0) - 1e-9, -1.0)


def rows_needed(
    limit: float, loss: float = 0.0, disagreement: float = 0.05, confidence: float = 0.95
) -> int:
    """The fewest rows that can certify this observed loss of accuracy; see `provable_loss`.

    Raises:
        UsageError: the loss is not below the limit, so that no number of rows is enough.
    """
    if loss >= limit:
        raise UsageError(
            f"no number of rows certifies an observed loss of {loss:.2%} within {limit:.2%}: "
            f"use a budget above {loss:.2%}"
        )
    enough = 1
    while provable_loss(enough, limit, disagreement, confidence) < loss:
        enough *= 2
    low = enough // 2
    while enough - low > 1:
        middle = (low + enough) // 2
        short = provable_loss(middle, limit, disagreement, confidence) < loss
        low, enough = (middle, enough) if short else (low, middle)
    return enough


def fixed_sequence(certificates: Iterable[Certificate]) -> int:
    """Index of the last certificate before the first that does not hold, -1 if that is the
    first one.

    Order the candidates, on other rows, from the safest to the fastest. Shipping a bad one
    takes passing the first bad one of that order: all before it are good, and testing stops
    at a failure. That one test errs with at most 1 - confidence, however many are tested, so
    no correction is due (fixed-sequence testing, as in Learn-then-Test). It holds only if
    the order does not depend on these rows and nothing is tried again after a failure.
    The certificates are consumed lazily, so that none is made after the first failure.
    """
    last = -1
    for i, certificate in enumerate(certificates):
        if not certificate.holds:
            break
        last = i
    return last
