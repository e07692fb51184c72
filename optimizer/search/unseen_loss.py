"""Estimate a candidate's loss on unseen rows from its answers on the select rows.

Select rows are training rows of the given model, which knows their answers by heart. It is
right more often there, and surer, so a candidate may lose more there than on unseen rows.
Post-stratification corrects this. Two facts of the given model divide the rows into strata h:
is its answer right, and how large is its margin? With the share W_h of stratum h among unseen
rows, and its n_h select rows,

    L = sum over h of W_h (1 / n_h) sum over rows i in h of (right_given(i) - right(i)).

If training was the last step, the candidate loses less on unseen rows, by the factor
`TRAINED`. The certify rows serve as unseen rows for W_h. Only the given model's answers to
them are used. Candidates' answers there stay unseen until a candidate is certified. Source:
Holt and Smith 1979, https://doi.org/10.2307/2344652
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.certificate.certificate import CONFIDENCE
from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.model.cascade import has_margins
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.tasks.metrics import Predictions
from prumux.optimizer.tasks.task import Task

from .predictions import CandidatePredictor

Floats = NDArray[np.float64]
BINS = 5
"""Number of margin classes, each with the same number of unseen rows."""
TRAINED = 0.6
"""Loss on unseen rows of a candidate whose last step was training, as a share of the estimate.

In one run on SST-2 the median of seven such candidates was 0.62 (`bench/README.md`)."""
USUAL_CHANGE = 0.05
"""Share of changed answers to assume if it is not known."""


@dataclass(frozen=True)
class GivenAnswers:
    """Facts of the given model's answers to N rows."""

    margins: NDArray[np.floating[Any]]
    """Difference between the two best logits of each row, [N]."""
    right: NDArray[np.bool_]
    """True for right answers, [N]."""

    def strata(self, edges: Floats) -> NDArray[np.int64]:
        """The stratum of each row, [N], from 0 to 2 * BINS - 1."""
        return np.asarray(2 * np.digitize(self.margins, edges) + self.right, np.int64)


@dataclass(frozen=True)
class LossEstimate:
    """A candidate's expected loss on unseen rows."""

    loss: float
    """The expected loss, in units of the metric."""
    changed: float = USUAL_CHANGE
    """Expected share of rows that exactly one of the two models answers correctly."""
    rows: float = math.inf
    """Number of equally weighted rows on which an estimate would be as exact."""

    def after_training(self) -> LossEstimate:
        """The estimate with the factor `TRAINED`, if a loss is expected."""
        return replace(self, loss=min(self.loss, TRAINED * self.loss))

    def chance(self, limit: float, rows: int, confidence: float = CONFIDENCE) -> float:
        """Probability that `rows` certify rows prove a loss of at most `limit`.

        With the bound U of a sample that has the expected counts, and d = `changed`, the bound
        of a random sample is about normal with mean U and variance d (1 / rows + 1 / n), where
        n is the number of rows behind the estimate.
        """
        return _chance(self, limit, rows, confidence)


@lru_cache(maxsize=4096)  # a search compares the same candidates many times
def _chance(one: LossEstimate, limit: float, rows: int, confidence: float) -> float:
    changed = min(max(one.changed, abs(one.loss), 1 / rows), 1.0)
    worse, better = rows * (changed + one.loss) / 2, rows * (changed - one.loss) / 2
    upper = accuracy_upper(rows, worse, better, confidence)
    spread = math.sqrt(changed * (1 / rows + 1 / one.rows))
    return NormalDist(upper, spread).cdf(limit)


def unseen_weights(select: GivenAnswers, unseen: GivenAnswers) -> Floats:
    """Weights of the select rows with which their strata have the shares of unseen rows.

    Args:
        select: the given model's answers to the N select rows.
        unseen: its answers to rows that it was not trained on.

    Returns:
        Weights with mean 1, [N]. Strata without select rows are left out.
    """
    edges = np.quantile(unseen.margins, np.linspace(0, 1, BINS + 1)[1:-1])
    of_select, of_unseen = select.strata(edges), unseen.strata(edges)
    seen = np.bincount(of_select, minlength=2 * BINS)
    wanted = np.bincount(of_unseen, minlength=2 * BINS)
    weights = (wanted / np.maximum(seen, 1))[of_select]
    return np.asarray(weights / weights.mean() if weights.any() else np.ones(len(weights)))


def estimate_loss(  # noqa: PLR0917 - an estimate depends on all of them
    task: Task,
    metric: str,
    dense: Predictions,
    optimised: Predictions,
    labels: Predictions,
    weights: Floats,
) -> LossEstimate:
    """Estimate the loss on unseen rows from weighted select rows.

    Args:
        task: the task.
        metric: name of the metric.
        dense, optimised: answers of the given model and of a candidate, [N].
        labels: the labels, [N].
        weights: the weights of `unseen_weights`, [N].
    """
    before, after = (
        float(task.scorer(metric, x, labels)(weights[None])[0]) for x in (dense, optimised)
    )
    unlike = task.right_rows(dense, labels) ^ task.right_rows(optimised, labels)
    rows = float(weights.sum() ** 2 / (weights**2).sum())
    return LossEstimate(before - after, float(np.average(unlike, weights=weights)), rows)


def expected_loss(
    predictor: CandidatePredictor, pipeline: Pipeline, found: Predictions
) -> LossEstimate:
    """A candidate's expected loss on unseen rows, from its answers on the select rows.

    If the task has no margins or the metric counts no right rows, the loss on the select rows
    is the estimate.

    Args:
        predictor: gives the given model's answers.
        pipeline: the candidate.
        found: the candidate's answers on the select rows.
    """
    task, metric = predictor.model.task, predictor.metric
    dense, labels = predictor.with_labels(Pipeline(()), "select")
    if not has_margins(task):
        score = partial(task.score, metric, labels=labels)
        return LossEstimate(score(dense) - score(found), rows=len(predictor.rows("select")))
    made = estimate_loss(task, metric, dense, found, labels, select_weights(predictor))
    return made.after_training() if ends_trained(pipeline) else made


def ends_trained(pipeline: Pipeline) -> bool:
    """True if training was the last step of a single model.

    The first model of a cascade causes most of its loss, so the factor does not hold there.
    """
    last = pipeline.passes[-1:]
    return any(x.training is not None and x.second_stage is None for x in last)


def select_weights(predictor: CandidatePredictor) -> Floats:
    """The weights of `unseen_weights` for the select rows, [N]. The task must have margins."""
    return unseen_weights(*(_given_answers(predictor, x) for x in ("select", "certify")))


def _given_answers(predictor: CandidatePredictor, role: str) -> GivenAnswers:
    dense, labels = predictor.with_labels(Pipeline(()), role)
    right = predictor.model.task.right_rows(dense, labels)
    return GivenAnswers(predictor.margins(Pipeline(()), role), right)
