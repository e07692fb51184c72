"""No budget is kept by a constant answer, and no labels are taken in another order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.certificate.baselines import (
    Judged,
    best_constant,
    check,
    select_warnings,
)
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens

BINARY = Classification(("negative", "positive"))
THREE = Classification(("yes", "maybe", "no"))
TWENTY = Classification(tuple(f"c{i}" for i in range(20)))
SCORE = Regression(("score",))
NER = Tokens(("O", "B-PER", "I-PER"))
POS = Tokens(("NOUN", "VERB"))
TWO = Budget.parse("2%")


def answers(labels: Any, classes: int, right: float, seed: int = 0) -> Any:
    """Answers that are right so often."""
    rng = np.random.default_rng(seed)
    other = (labels + rng.integers(1, classes, size=len(labels))) % classes
    return np.where(rng.random(len(labels)) < right, labels, other)


def rare(positives: int = 8, rows: int = 436) -> tuple[Any, Any]:
    """Labels with few positives, and a model that finds six of eight of them."""
    labels = (np.arange(rows) < positives).astype(np.int64)
    dense = labels.copy()
    dense[: positives // 4] = 0
    dense[positives : positives + 49] = 1
    return dense, labels


def refused(dense: Any, labels: Any, task: Task, metric: str, budget: str | None) -> str:
    judged = Judged(dense, labels, task, metric, "certify")
    with pytest.raises(UsageError) as caught:
        check(judged, None if budget is None else Budget.parse(budget))
    return str(caught.value)


def warned(dense: Any, labels: Any, task: Task, metric: str, budget: str | None) -> str:
    judged = Judged(dense, labels, task, metric, "certify")
    return "\n".join(check(judged, None if budget is None else Budget.parse(budget)))


@pytest.mark.parametrize("budget", ["2%", "2%rel"])
def test_accuracy_on_few_positives_is_refused_with_both_numbers(budget: str) -> None:
    text = refused(*rare(), BINARY, "accuracy", budget)
    assert "always answering 'negative' scores 98.17 accuracy on the 436 certify rows" in text
    assert f"the given model 88.30, so it keeps --budget {budget}" in text
    assert "balanced-accuracy (81.78, constant 50.00), macro-f1" in text
    assert text.endswith("write: --metric balanced-accuracy")


@pytest.mark.parametrize("metric", ["balanced-accuracy", "macro-f1", "f1"])
def test_the_metrics_that_are_named_are_taken(metric: str) -> None:
    text = warned(*rare(), BINARY, metric, "2%")
    assert "few certify rows of some classes ('positive' 8)" in text


def test_without_a_budget_it_is_said_and_no_more() -> None:
    text = warned(*rare(), BINARY, "accuracy", None)
    assert "always answering 'negative' scores 98.17 accuracy" in text


def test_near_the_budget_is_warned_of() -> None:
    labels = (np.arange(1000) < 35).astype(np.int64)
    text = warned(labels, labels, BINARY, "accuracy", "2%")
    assert "scores 96.50 accuracy" in text
    assert "over half of the way there; consider --metric balanced-accuracy" in text
    assert not warned(labels, labels, BINARY, "accuracy", "1.5%")


@pytest.mark.parametrize("task", [BINARY, THREE, TWENTY, SCORE, NER, POS])
def test_no_constant_answer_is_better(task: Task) -> None:
    rng = np.random.default_rng(0)
    labels: Any
    if isinstance(task, Tokens):
        labels = tuple(rng.integers(len(task.labels), size=5) for _ in range(50))
        labels[0][0] = -100
    elif task is SCORE:
        labels = rng.random(50)
    else:
        labels = rng.integers(len(task.labels), size=50)
    for metric in (x.name for x in task.metrics):
        best = best_constant(Judged(labels, labels, task, metric, "certify")).score
        for c in range(len(task.labels)):
            constant: Any = np.full(50, c)
            if isinstance(labels, tuple):
                constant = tuple(np.full((x != -100).sum(), c) for x in labels)
            truth = labels
            if metric == "agreement" and isinstance(labels, tuple):
                truth = tuple(x[x != -100] for x in labels)
            assert task.score(metric, constant, truth) <= best + 1e-12, metric


def test_tags_that_are_nearly_all_outside() -> None:
    labels = tuple(np.array([0] * 99 + [1]) for _ in range(20))
    text = refused(labels, labels, NER, "accuracy", "2%")
    assert "always answering 'O' scores 99.00 accuracy on the 20 certify rows" in text
    assert text.endswith("write: --metric f1")
    assert refused(labels, labels, POS, "accuracy", "2%").endswith("write: --budget 0.5%")


def test_unlabelled_rows_that_get_one_answer() -> None:
    dense = (np.arange(500) < 5).astype(np.int64)
    text = refused(dense, None, BINARY, "agreement", "2%")
    assert "always answering 'negative' scores 99.00 agreement" in text
    assert text.endswith("write: --budget 0.5%")
    zeros = np.zeros(500, dtype=np.int64)
    assert "no metric tells them apart" in refused(zeros, None, BINARY, "agreement", "2%")
    half = np.arange(500) % 2
    assert not warned(half, None, BINARY, "agreement", "2%")


def test_rare_classes_of_twenty_may_go_unseen() -> None:
    labels = np.concatenate([np.repeat(np.arange(19), 50), np.full(9, 19)])
    text = warned(labels, labels, TWENTY, "accuracy", "2%")
    assert "even if one of these classes is never found: 'c19' (9 right answers)" in text
    assert "balanced-accuracy or macro-f1" in text
    assert not warned(labels, labels, TWENTY, "accuracy", "0.5%")
    assert "'c19' 9" in warned(labels, labels, TWENTY, "balanced-accuracy", "2%")
    few = labels[labels < 19]
    assert "no certify rows of 'c19'" in warned(few, few, TWENTY, "macro-f1", "2%")


@pytest.mark.parametrize("budget", ["2%", None])
def test_labels_in_another_order_name_the_option(budget: str | None) -> None:
    labels = np.arange(872) % 2
    text = refused(answers(labels, 2, 0.1), labels, BINARY, "accuracy", budget)
    assert "always answering 'negative' scores 50.00 accuracy" in text
    assert "if 'negative' means 'positive', 'positive' means 'negative'" in text
    assert "write: --labels negative=positive positive=negative\n" in text


def test_two_of_three_classes_exchanged() -> None:
    labels = np.arange(600) % 3
    dense = answers(np.array([2, 1, 0])[labels], 3, 0.85)
    text = refused(dense, labels, THREE, "accuracy", "2%")
    assert "write: --labels yes=no no=yes\n" in text


def test_two_of_twenty_classes_exchanged() -> None:
    labels = np.arange(2000) % 20
    order = np.arange(20)
    order[[3, 7]] = 7, 3
    text = refused(answers(order[labels], 20, 0.95), labels, TWENTY, "accuracy", "2%")
    assert "--labels c3=c7 c7=c3" in text
    # Said to be right as they are: warned of, and no more.
    judged = Judged(answers(order[labels], 20, 0.95), labels, TWENTY, "accuracy", "certify")
    text = "\n".join(check(judged, TWO, confirmed=True))
    assert "if 'c3' means 'c7', 'c7' means 'c3'" in text


def test_labels_that_have_nothing_to_do_with_the_answers() -> None:
    rng = np.random.default_rng(0)
    labels, dense = (rng.random(800) < 0.3).astype(int), (rng.random(800) < 0.5).astype(int)
    for budget in ("2%", None):
        text = refused(dense, labels, BINARY, "accuracy", budget)
        assert "the labels do not fit the model's answers" in text
        assert "--metric agreement" in text
    rows = np.arange(100.0)
    assert "the labels do not fit" in refused(-rows, rows, SCORE, "pearson", "2%")


def test_few_rows_are_no_proof() -> None:
    """A model that is as good as a constant answer is seldom said to know nothing."""
    rng, stopped = np.random.default_rng(0), 0
    for _ in range(400):
        labels = (rng.random(30) < 0.4).astype(np.int64)
        dense = np.where(rng.random(30) < 0.62, labels, 1 - labels)
        try:
            warned(dense, labels, BINARY, "accuracy", None)
        except UsageError:
            stopped += 1
    assert stopped <= 0.02 * 400


def test_select_rows_are_only_warned_of() -> None:
    judged = Judged(*rare(), BINARY, "accuracy", "select")
    (text,) = select_warnings(judged, TWO)
    assert "on the 436 select rows, the given model 88.30" in text
    half = np.arange(100) % 2
    assert not select_warnings(Judged(half, half, BINARY, "accuracy", "select"), TWO)
