"""Ranking: metrics by query, ties, the constant answer, losses, and when a model ranks."""

from __future__ import annotations

from itertools import pairwise, permutations
from typing import Any, NoReturn

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.certificate.betting import betting_upper
from prumux.optimizer.certificate.certificate import certify, interval
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.ranking import CUT, Ranking, mrr, ndcg, recall
from prumux.optimizer.tasks.registry import from_config, of_data
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task

TASK = Ranking(("score",))
METRICS = [x.name for x in TASK.metrics]
JUDGED = ("ndcg@10", "mrr@10", "recall@10")


def fail(row: int | None, text: str) -> NoReturn:
    raise DataError(f"row {row}: {text}")


def draw(seed: int, queries: int = 6, ties: bool = False) -> tuple[Any, Any]:
    """Predictions and labels of queries with 2 to 14 passages, each with a relevant one."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(queries) * 3 + 5, rng.integers(2, 15, queries))
    grades = rng.choice([0, 0, 0, 1, 2, 3], len(groups)).astype(float)
    grades[np.unique(groups, return_index=True)[1]] = 1.0
    scores = grades + 2 * rng.normal(size=len(groups))
    mixed = rng.permutation(len(groups))
    groups, grades, scores = groups[mixed], grades[mixed], scores[mixed]
    if ties:
        scores = np.round(scores)
    return TASK.with_groups(scores, groups), TASK.with_groups(grades, groups)


# Metrics -----------------------------------------------------------------------------------


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32), ties=st.booleans())
def test_ndcg_as_in_scikit_learn(seed: int, ties: bool) -> None:
    p, y = draw(seed, ties=ties)
    expected = [
        sklearn.metrics.ndcg_score([y[y[:, 0] == q, 1]], [p[y[:, 0] == q, 1]], k=CUT)
        for q in np.unique(y[:, 0])
    ]
    assert TASK.row_scores("ndcg@10", p, y) == pytest.approx(expected)
    assert TASK.score("ndcg@10", p, y) == pytest.approx(np.mean(expected))


def by_hand(metric: str, order: list[int], grades: Any) -> float:
    """The metric of passages in a given order, without ties."""
    first = [grades[i] > 0 for i in order[:CUT]]
    if metric == "mrr@10":
        return 1 / (first.index(True) + 1) if any(first) else 0.0
    return sum(map(int, first)) / min(CUT, int((grades > 0).sum()))


@pytest.mark.parametrize(("metric", "score"), [("mrr@10", mrr), ("recall@10", recall)])
@pytest.mark.parametrize("seed", range(8))
def test_equal_scores_are_the_mean_of_all_their_orders(
    metric: str, score: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 3, 5).astype(float)
    grades = rng.choice([0, 0, 1], 5).astype(float)
    grades[int(rng.integers(5))] = 2
    # Twelve passages before the five that may be tied push some beyond the tenth.
    many = np.concatenate([np.full(seed, 9.0), found])
    judged = np.concatenate([np.zeros(seed), grades])
    orders = [
        [*range(seed), *(seed + np.array(x))]
        for x in permutations(range(5))
        if all(found[a] >= found[b] for a, b in pairwise(x))
    ]
    expected = np.mean([by_hand(metric, x, judged) for x in orders])
    assert score(many, judged) == pytest.approx(expected)


@pytest.mark.parametrize("score", [ndcg, mrr, recall])
def test_the_best_order_scores_1_and_no_relevant_passage_scores_nothing(score: Any) -> None:
    grades = np.array([0.0, 2, 0, 1] * 4)
    assert score(grades, grades) == pytest.approx(1.0)
    assert score(-grades, grades) < 0.5
    assert np.isnan(score(grades, np.zeros(16)))
    assert np.isnan(score(grades, -np.ones(16)))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), metric=st.sampled_from(JUDGED))
def test_laws_of_scores(seed: int, metric: str) -> None:
    p, y = draw(seed)
    scores = TASK.row_scores(metric, p, y)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert TASK.score(metric, p, y) == pytest.approx(scores.mean())
    # Neither the order of rows nor a monotone change of the scores has a meaning.
    order = np.random.default_rng(seed).permutation(len(p))
    assert TASK.score(metric, p[order], y[order]) == pytest.approx(scores.mean())
    other = TASK.with_groups(3 * np.exp(p[:, 1]) + 1, p[:, 0])
    assert TASK.score(metric, other, y) == pytest.approx(scores.mean())
    # A query of weight 0 is not there, one of weight 2 counts twice.
    of = TASK.draws(p)
    weights = np.arange(of.max() + 1) % 3 + 0.0
    found = TASK.scorer(metric, p, y)(weights[of][None])[0]
    assert found == pytest.approx(np.average(scores, weights=weights))


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32))
def test_agreement_is_the_share_of_pairs_in_the_same_order(seed: int) -> None:
    p, _ = draw(seed)
    assert TASK.score("agreement", p, p) == pytest.approx(1.0)
    mirrored = TASK.with_groups(-p[:, 1], p[:, 0])
    assert TASK.score("agreement", mirrored, p) == pytest.approx(0.0)
    assert TASK.best_constant("agreement", p).score == pytest.approx(0.5)


@pytest.mark.parametrize("metric", JUDGED)
def test_the_constant_answer_scores_as_random_orders_do(metric: str) -> None:
    _, y = draw(0)
    rng = np.random.default_rng(1)
    scores = [
        TASK.score(metric, TASK.with_groups(rng.random(len(y)), y[:, 0]), y)
        for _ in range(600)
    ]
    constant = TASK.best_constant(metric, y)
    assert constant.score == pytest.approx(np.mean(scores), abs=0.02)
    assert constant.answer == "one score for all passages"


# Certificates ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_a_certificate_counts_queries(metric: str) -> None:
    p, y = draw(3, queries=200)
    rng = np.random.default_rng(0)
    q = p + np.stack([np.zeros(len(p)), 0.3 * rng.normal(size=len(p))], axis=1)
    found = certify(metric, p, q, y, TASK, 0.1)
    truth = y if TASK.metric(metric).needs_labels else p
    losses = TASK.row_scores(metric, p, truth) - TASK.row_scores(metric, q, truth)
    assert (found.rows, found.method) == (len(losses), "betting")
    assert found.loss == pytest.approx(losses.mean())
    least = -1.0 if TASK.metric(metric).needs_labels else 0.0
    assert found.loss_upper == betting_upper(losses, 0.95, least)
    assert found.loss_upper > found.loss
    low, high = interval(metric, q, truth, TASK)
    assert low < found.score < high


def test_queries_that_share_a_pass_prove_less() -> None:
    p, y = draw(3, queries=200)
    rng = np.random.default_rng(0)
    of = TASK.draws(p)
    # Two neighbouring queries lose together.
    lost = (rng.random(100) < 0.3)[of // 2]
    q = TASK.with_groups(np.where(lost, -p[:, 1], p[:, 1]), p[:, 0])
    alone = certify("ndcg@10", p, q, y, TASK, 0.1)
    mixed = certify("ndcg@10", p, q, y, TASK, 0.1, groups=of // 2)
    assert mixed.loss == alone.loss
    assert mixed.loss_upper > alone.loss_upper


# When a model ranks ------------------------------------------------------------------------

PAIRS = ("text_a", "text_b", "score")


@pytest.mark.parametrize(
    ("columns", "metric", "kind"),
    [
        (PAIRS, None, Regression),
        (PAIRS, "agreement", Regression),
        (PAIRS, "ndcg@10", Ranking),
        (PAIRS, "recall@10", Ranking),
        ((*PAIRS, "query_id"), None, Ranking),
        ((*PAIRS, "QID "), "agreement", Ranking),
        (("query", "passage", "label"), None, Ranking),
        (("query", "document", "label"), "mrr@10", Ranking),
        (("query", "passage", "label"), "pearson", Regression),
        (("query", "passage", "label"), "spearmanr", Regression),
        (("query", "text", "label"), None, Regression),
        (("passage", "label"), None, Regression),
    ],
)
def test_the_data_or_the_metric_say_that_a_model_ranks(
    columns: tuple[str, ...], metric: str | None, kind: type[Task]
) -> None:
    given = Regression(("score",), "sigmoid")
    found = of_data(given, lambda: columns, metric)
    assert type(found) is kind
    assert vars(found) == vars(given), "labels and activation stay"
    two = Classification(("a", "b"))
    assert of_data(two, lambda: columns, metric) is two


def test_what_is_written_is_read_as_a_model_of_one_score() -> None:
    written = {"architectures": [TASK.own_class()], "problem_type": TASK.problem_type}
    found = from_config(written | {"id2label": {"0": "score"}})
    assert found == Regression(("score",))


def test_metrics_of_other_tasks_do_not_fit() -> None:
    with pytest.raises(
        UsageError, match=r"'accuracy' does not fit ranking .* ndcg@10, mrr@10"
    ):
        TASK.metric("accuracy")
    with pytest.raises(UsageError, match="no mean of scores"):
        Classification(("a", "b")).row_scores("accuracy", np.zeros(2), np.zeros(2))


def test_grades() -> None:
    assert TASK.read_labels(["0", 2, 0.5], None, fail).tolist() == [0, 2, 0.5]  # type: ignore[union-attr]
    assert TASK.read_labels([-1, -1], None, fail) is None
    with pytest.raises(DataError, match="none of 2 passages is relevant"):
        TASK.read_labels([0, -1], None, fail)


# Losses ------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_distillation_is_on_differences_within_a_query(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    teacher, student = torch.randn(2, 7, 1, generator=random)
    groups = torch.tensor([4, 4, 9, 4, 9, 2, 4])
    assert float(TASK.group_loss(teacher, teacher, groups, 1.0)) == 0
    error = (student - teacher).flatten()
    expected = 0.0
    for number in (4, 9):
        e = error[groups == number]
        pairs = (e[:, None] - e).square().sum() / (len(e) * (len(e) - 1)) / 2
        expected += float(len(e) * pairs + 0.1 * e.square().sum())
    expected += float(error[5] ** 2)  # alone in the batch: its value counts
    found = float(TASK.group_loss(student, teacher, groups, 1.0))
    assert found == pytest.approx(expected / 7, rel=1e-4)
    # A shift of all scores of a query changes no difference.
    shifted = teacher + (groups == 4).float()[:, None]
    values = 0.1 * 4 / 7
    assert float(TASK.group_loss(shifted, teacher, groups, 1.0)) == pytest.approx(values)


def test_other_tasks_ignore_queries() -> None:
    a, b = torch.randn(2, 5, 2, generator=torch.Generator().manual_seed(0))
    task = Classification(("a", "b"))
    found = task.group_loss(a, b, torch.zeros(5), 2.0)
    assert float(found) == float(task.logit_loss(a, b, 2.0))


def test_label_loss() -> None:
    logits = torch.zeros(4, 1, requires_grad=True)
    labels = torch.tensor([[1, 3.0], [1, 0.0], [2, float("nan")], [float("nan")] * 2])
    loss, count = TASK.label_loss(logits, labels)
    assert count == 2
    assert float(loss.detach()) == pytest.approx(np.log(2))
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad.flatten().tolist() == pytest.approx([-0.25, 0.25, 0, 0])
    nothing, none = TASK.label_loss(logits, torch.full((4, 2), torch.nan))
    assert (float(nothing.detach()), none) == (0.0, 0)


def test_instability() -> None:
    p, _ = draw(0)
    other = TASK.with_groups(p[:, 1] + 1, p[:, 0])
    assert TASK.instability([p, p]) == 0
    assert TASK.instability([p, other]) == pytest.approx(0.5 / p[:, 1].std())
