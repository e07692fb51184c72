"""Scores against scikit-learn, scipy and hand-worked spans."""

from typing import Any

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens, spans

BINARY = Classification(("no", "yes"))
FIVE = Classification(tuple("abcde"))
SCORE = Regression(("score",))
NER = Tokens(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))
IOBES = Tokens(("O", "B-X", "I-X", "E-X", "S-X"))
POS = Tokens(("NOUN", "VERB"))


def draw(classes: int, rows: int = 200) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=rows)
    return np.where(rng.random(rows) < 0.7, labels, rng.integers(classes, size=rows)), labels


@pytest.mark.parametrize("task", [BINARY, FIVE])
def test_classification_equals_sklearn(task: Task) -> None:
    p, y = draw(len(task.labels))
    average = "binary" if task is BINARY else "macro"
    assert task.score("accuracy", p, y) == pytest.approx((p == y).mean())
    assert task.score("f1", p, y) == pytest.approx(
        sklearn.metrics.f1_score(y, p, average=average)
    )
    assert task.score("matthews_correlation", p, y) == pytest.approx(
        sklearn.metrics.matthews_corrcoef(y, p)
    )
    assert task.score("macro-f1", p, y) == pytest.approx(
        sklearn.metrics.f1_score(y, p, average="macro")
    )
    assert task.score("balanced-accuracy", p, y) == pytest.approx(
        sklearn.metrics.balanced_accuracy_score(y, p)
    )


def test_macro_f1_is_over_the_classes_that_occur() -> None:
    p, y = np.array([0, 1, 2, 1]), np.array([0, 1, 1, 1])
    expected = sklearn.metrics.f1_score(y, p, average="macro", zero_division=0)
    assert FIVE.score("f1", p, y) == pytest.approx(expected)
    assert FIVE.score("macro-f1", p, y) == pytest.approx(expected)


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_balanced_accuracy_is_over_the_classes_of_the_labels() -> None:
    p, y = np.array([0, 1, 2, 1, 3]), np.array([0, 1, 1, 1, 0])
    expected = sklearn.metrics.balanced_accuracy_score(y, p)
    assert FIVE.score("balanced-accuracy", p, y) == pytest.approx(expected)


def test_regression_equals_scipy() -> None:
    rng = np.random.default_rng(1)
    y = np.round(rng.random(150) * 5, 1)  # with ties
    p = np.round(y + rng.normal(size=150)) + 1e6  # a large offset
    assert SCORE.score("pearson", p, y) == pytest.approx(scipy.stats.pearsonr(p, y)[0])
    assert SCORE.score("spearmanr", p, y) == pytest.approx(scipy.stats.spearmanr(p, y)[0])
    assert SCORE.score("agreement", p, p) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ["pearson", "spearmanr", "agreement"])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e9])
def test_constant_predictions_correlate_with_nothing(metric: str, constant: float) -> None:
    y = np.random.default_rng(2).random(33)
    assert SCORE.score(metric, np.full(33, constant), y) == 0.0


def test_constant_classes_score_without_a_warning() -> None:
    zeros, y = np.zeros(10, dtype=np.int64), np.arange(10) % 2
    assert BINARY.score("matthews_correlation", zeros, y) == 0.0
    assert BINARY.score("f1", zeros, zeros) == 0.0


@pytest.mark.parametrize(
    ("metric", "task"),
    [(m.name, t) for t in (BINARY, FIVE, SCORE, NER, POS) for m in t.metrics],
)
def test_weights_are_repeats(metric: str, task: Task) -> None:
    rng = np.random.default_rng(3)
    p: Any
    y: Any
    if isinstance(task, Tokens):
        sizes = rng.integers(1, 9, size=30)
        y = tuple(rng.integers(len(task.labels), size=n) for n in sizes)
        p = tuple(np.where(rng.random(len(x)) < 0.8, x, 0) for x in y)
    elif isinstance(task, Regression):
        y = np.round(rng.random(30), 1)
        p = np.round(y + 0.3 * rng.normal(size=30), 1)
    else:
        p, y = draw(len(task.labels), 30)
    weights = rng.integers(0, 4, size=(5, 30))
    found = task.scorer(metric, p, y)(weights.astype(float))
    for w, value in zip(weights, found, strict=True):
        at = np.repeat(np.arange(30), w)
        repeated: list[Any] = [tuple(x[i] for i in at) for x in (p, y)]
        repeated = repeated if isinstance(y, tuple) else [np.array(x) for x in repeated]
        once = task.score(metric, repeated[0], repeated[1])
        assert value == pytest.approx(once)


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O B-PER I-PER O", {("PER", 1, 2)}),
        ("B-PER B-PER", {("PER", 0, 0), ("PER", 1, 1)}),
        ("I-PER I-PER", {("PER", 0, 1)}),  # a span may begin with I
        ("B-PER I-LOC", {("PER", 0, 0), ("LOC", 1, 1)}),  # a new type begins a span
        ("O O", set()),
    ],
)
def test_bio_spans(tags: str, expected: set[tuple[str, int, int]]) -> None:
    ids = np.array([NER.labels.index(x) for x in tags.split()])
    assert spans(ids, NER.labels) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-X I-X E-X S-X", {("X", 0, 2), ("X", 3, 3)}),
        ("S-X S-X", {("X", 0, 0), ("X", 1, 1)}),
        ("B-X E-X I-X", {("X", 0, 1), ("X", 2, 2)}),
        ("E-X E-X", {("X", 0, 0), ("X", 1, 1)}),
    ],
)
def test_iobes_spans(tags: str, expected: set[tuple[str, int, int]]) -> None:
    ids = np.array([IOBES.labels.index(x) for x in tags.split()])
    assert spans(ids, IOBES.labels) == expected


def test_token_scores_skip_what_is_not_scored() -> None:
    # One of two spans found, one invented: F1 = 2 * 1 / (2 + 2).
    y = (np.array([-100, 1, 2, 0, -100]), np.array([3, 0]))
    p = (np.array([1, 2, 0]), np.array([0, 3]))
    assert NER.score("f1", p, y) == pytest.approx(0.5)
    assert NER.score("accuracy", p, y) == pytest.approx(3 / 5)
    assert NER.score("agreement", p, p) == 1.0


def test_predictions_of_logits() -> None:
    logits = np.array([[0.0, 1.0], [3.0, 2.0]])
    assert BINARY.predictions(logits).tolist() == [1, 0]
    assert SCORE.predictions(logits[:, :1]).tolist() == [0.0, 3.0]
    assert [x.tolist() for x in POS.predictions((logits,))] == [[1, 0]]
    ids = POS.predictions((logits,), (np.array([-100, 1]),))
    assert [x.tolist() for x in ids] == [[0]]
    mask = POS.predictions((logits,), (np.array([True, False]),))
    assert [x.tolist() for x in mask] == [[1]]


def test_default_metrics() -> None:
    assert [t.default_metric for t in (BINARY, SCORE, NER, IOBES, POS)] == [
        "accuracy",
        "pearson",
        "f1",
        "f1",
        "accuracy",
    ]


@pytest.mark.parametrize(
    ("metric", "task", "message"),
    [
        (
            "pearson",
            BINARY,
            "'pearson' does not fit text-classification with 2 labels; these ",
        ),
        (
            "accuracy",
            SCORE,
            "does not fit regression .*: pearson, spearmanr, agreement: write",
        ),
        ("f1", POS, "these do: accuracy, agreement: write, say, --metric accuracy"),
        ("bleu", NER, "these do: accuracy, f1, agreement: write, say, --metric f1"),
    ],
)
def test_a_metric_that_does_not_fit(metric: str, task: Task, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task.score(metric, np.zeros(3), np.zeros(3))


def test_counts_must_agree() -> None:
    with pytest.raises(DataError, match="3 predictions for 2 labels"):
        BINARY.score("accuracy", np.zeros(3), np.zeros(2))
    with pytest.raises(DataError, match="row 2: 1 predictions for 2 labels"):
        NER.score("f1", (np.zeros(1), np.zeros(1)), (np.zeros(1), np.zeros(2)))
