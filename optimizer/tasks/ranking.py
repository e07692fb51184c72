"""Ranking: a reranker's scores order the passages of a query.

A model with one label is a reranker if the data or the chosen metric are made for rankings.
The model's `config.json` does not show this. Users get the same answers as in `regression.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .labels import Fail
from .metrics import AGREEMENT, Floats, Metric, Predictions, Scorer, ratio
from .regression import Regression
from .task import ConstantAnswer, Task

CUT = 10
"""Metrics use the first ten passages of a query."""
VALUES = 0.1
"""Weight of the scores' own errors, relative to errors of differences within a query."""
QUERIES = ("query_id", "query-id", "qid")
"""Possible names of the query column."""
PASSAGES = ("passage", "document")
"""Names of passage columns. With a column `query`, they mark the data as a ranking."""


def is_ranking(columns: Collection[str]) -> bool:
    """True if data with these columns consists of queries with passages."""
    names = {x.strip().casefold() for x in columns}
    return bool(names & {*QUERIES}) or ("query" in names and bool(names & {*PASSAGES}))


@dataclass(frozen=True)
class Ranking(Regression):
    """Scores of a query's passages. Predictions and labels are [N, 2]: query, value.

    Labels are grades. A passage with a grade above 0 is relevant, and the grade is its gain.
    """

    name: ClassVar[str] = "ranking"
    kind: ClassVar[str] = "text-ranking"
    problem: ClassVar[str] = "ranking"
    other_columns: ClassVar[tuple[str, ...]] = ("scores", "labels", "relevance")
    group_columns: ClassVar[tuple[str, ...]] = QUERIES
    unit: ClassVar[str] = "queries"
    agreement_meaning: ClassVar[str] = (
        "The share of a query's pairs of passages that both models order alike is"
    )

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """False: `config.json` does not show that a model's scores rank passages."""
        del problem_type, labels
        return False

    @classmethod
    def of_data(
        cls, task: Task, columns: Callable[[], Collection[str]], metric: str | None
    ) -> Self | None:
        """See `Task.of_data`. Replaces regression, unless a metric of regression is chosen."""
        if type(task) is not Regression:
            return None
        own = {x.name for x in task.metrics} - {AGREEMENT}
        ranking = cls(task.labels, task.activation)
        asked = metric in {x.name for x in ranking.metrics} - {AGREEMENT}
        return ranking if asked or (metric not in own and is_ranking(columns())) else None

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Floats | None:
        """Grades [N]; None if every value is -1 (hidden labels)."""
        found = super().read_labels(values, words, fail)
        if found is not None and not (found > 0).any():
            fail(None, f"none of {len(found)} passages is relevant: a grade is above 0")
        return found

    def with_groups(self, values: Predictions, groups: NDArray[np.int64]) -> Floats:
        """Query and value of each row, [N, 2]."""
        return np.stack([groups.astype(np.float64), np.asarray(values, np.float64)], axis=1)

    def telling_rows(self, labels: Predictions) -> NDArray[np.bool_]:
        """True for rows of queries with a relevant passage, [N]."""
        groups, grades = np.asarray(labels).T
        return np.isin(groups, groups[grades > 0])

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """nDCG, MRR and recall of the first ten passages, and agreement, all by query.

        Agreement is the share of a query's passage pairs that both models order alike.
        """
        return (
            Metric("ndcg@10", "mean"),
            Metric("mrr@10", "mean"),
            Metric("recall@10", "mean"),
            Metric(AGREEMENT, "mean", needs_labels=False),
        )

    @property
    def default_metric(self) -> str:
        """nDCG of the first ten passages."""
        return "ndcg@10"

    def row_scores(self, metric: str, predictions: Predictions, labels: Predictions) -> Floats:
        """The scores of all queries with a score, in the order of the query numbers."""
        found = self._query_scores(metric, predictions, labels)
        return found[np.isfinite(found)]

    def draws(self, predictions: Predictions) -> NDArray[np.int64]:
        """The query of each row, renumbered from 0, [N]."""
        groups = np.asarray(predictions)[:, 0]
        return np.asarray(np.unique(groups, return_inverse=True)[1], dtype=np.int64)

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        """See `Task._scorer`. A query's weight is the mean weight of its rows."""
        scores = self._query_scores(metric, predictions, labels)
        of = self.draws(predictions)
        rows, order = np.bincount(of), np.argsort(of, kind="stable")
        starts, known = np.cumsum(rows) - rows, np.isfinite(scores)

        def mean(weights: Floats) -> Floats:
            each = np.add.reduceat(weights[:, order], starts, axis=1) / rows
            return ratio(each[:, known] @ scores[known], each[:, known].sum(1))

        return mean

    def _query_scores(
        self, metric: str, predictions: Predictions, labels: Predictions
    ) -> Floats:
        """The score of each query; nan for a query without a score."""
        p, y = np.asarray(predictions), np.asarray(labels)
        of = self.draws(p)
        order = np.argsort(of, kind="stable")
        cuts = np.cumsum(np.bincount(of))[:-1]
        pairs = zip(np.split(p[order, 1], cuts), np.split(y[order, 1], cuts), strict=True)
        score = _SCORES[metric]
        return np.array([score(found, aim) for found, aim in pairs], dtype=np.float64)

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """One score for all passages. Every order of the passages is then equally likely."""
        y = np.asarray(truth)
        constant = np.stack([y[:, 0], np.zeros(len(y))], axis=1)
        return ConstantAnswer("one score for all passages", self.score(metric, constant, y))

    def instability(self, draws: Sequence[Predictions]) -> float:
        """Mean standard deviation of a row over draws, relative to that of all rows."""
        return super().instability([np.asarray(x)[:, 1] for x in draws])

    def group_loss(
        self, student: Tensor, teacher: Tensor, groups: Tensor, temperature: float
    ) -> Tensor:
        """Squared error of score differences within queries, and of scores, weight `VALUES`.

        Let e = student - teacher. The mean square of e_i - e_j over the pairs of a query's n
        rows is 2 n / (n - 1) times the variance of e. A row that is alone in the batch has no
        difference, so the squared error of its score is used instead.
        """
        del temperature
        error = (student.float() - teacher.float()).reshape(-1)
        numbers = torch.unique(groups, return_inverse=True)[1]
        rows = torch.bincount(numbers)[numbers].float()
        sums = torch.zeros(len(error), device=error.device).index_add(0, numbers, error)
        apart = (error - sums[numbers] / rows).square() * rows / (rows - 1).clamp(min=1)
        return torch.where(rows > 1, apart + VALUES * error.square(), error.square()).mean()

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Binary cross-entropy of grades clamped to [0, 1]. Rows labelled NaN are ignored."""
        grades = labels[..., 1]
        known = grades.isfinite()
        count = int(known.sum())
        if not count:
            return logits.float().sum() * 0.0, 0
        found = logits.float().reshape(-1)[known]
        wanted = grades[known].clamp(0, 1).float()
        return F.binary_cross_entropy_with_logits(found, wanted), count


def _gains(found: Floats, grades: Floats) -> Floats:
    """The passages' gains, by descending score. Passages of equal score get the mean gain."""
    _, of = np.unique(-found, return_inverse=True)
    means = np.bincount(of, weights=grades) / np.bincount(of)
    return np.asarray(means[np.sort(of)])


def ndcg(found: Floats, grades: Floats) -> float:
    """nDCG of the first ten passages with linear gains; nan if no passage has a gain.

    For equal scores, the mean over all their orders counts, as in scikit-learn.
    """
    gains = np.maximum(grades, 0)
    discounts = 1 / np.log2(np.arange(2, min(len(gains), CUT) + 2))
    best = np.sort(gains)[::-1][:CUT] @ discounts
    return float(_gains(found, gains)[:CUT] @ discounts / best) if best > 0 else np.nan


def recall(found: Floats, grades: Floats) -> float:
    """Relevant passages among the first ten, divided by all relevant ones (at most ten)."""
    relevant = (grades > 0).astype(np.float64)
    most = min(relevant.sum(), CUT)
    return float(_gains(found, relevant)[:CUT].sum() / most) if most else np.nan


def mrr(found: Floats, grades: Floats) -> float:
    """1 / rank of the first relevant passage; 0 if the rank is above ten.

    Suppose n passages have the score of the best relevant one, and r of them are relevant. All
    orders of these n are equally likely, and the mean over the orders counts.
    """
    relevant = grades > 0
    if not relevant.any():
        return np.nan
    top = found[relevant].max()
    before, tied = int((found > top).sum()), found == top
    n, r = int(tied.sum()), int((tied & relevant).sum())
    score, none_yet = 0.0, 1.0
    for j in range(min(n, CUT - before)):
        chance = r / (n - j) if r <= n - j else 1.0
        score += none_yet * chance / (before + j + 1)
        none_yet *= 1 - chance
        if none_yet <= 0:
            break
    return score


def concordance(found: Floats, aim: Floats) -> float:
    """Share of the pairs that differ in `aim` and are in its order; ties count half."""
    i, j = np.triu_indices(len(aim), 1)
    wanted = np.sign(aim[i] - aim[j])
    got = np.sign(found[i] - found[j])[wanted != 0]
    wanted = wanted[wanted != 0]
    return float(0.5 + 0.5 * (wanted * got).mean()) if len(wanted) else np.nan


_SCORES: dict[str, Callable[[Floats, Floats], float]] = {
    "ndcg@10": ndcg,
    "mrr@10": mrr,
    "recall@10": recall,
    AGREEMENT: concordance,
}
