"""Multi-label classification: thresholds, label values, scores and worst cases."""

from typing import Any, NoReturn

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import DataError, ModelError
from prumux.optimizer.tasks.label_lists import DELIMITERS, ZerosAndOnes, label_lists
from prumux.optimizer.tasks.multilabel import MultiLabel
from prumux.optimizer.tasks.registry import from_config, from_own_config

NAMES = ("anger", "joy", "mild fear")
TASK = MultiLabel(NAMES)
CONFIG = {
    "architectures": ["BertForSequenceClassification"],
    "problem_type": "multi_label_classification",
    "id2label": dict(enumerate(NAMES)),
}


def fail(row: int | None, text: str) -> NoReturn:
    raise DataError(f"row {row}: {text}")


def read(values: list[Any], names: tuple[str, ...] = NAMES) -> list[list[int]]:
    """The matrix that a column is read as."""
    found = label_lists(values, names, (), fail)
    ids: list[list[int]] = MultiLabel(names).read_labels(found.lists, None, fail).tolist()
    return ids


# Thresholds --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, ()),
        ({"threshold": 0.3}, (0.3, 0.3, 0.3)),
        ({"thresholds": 0.3}, (0.3, 0.3, 0.3)),
        ({"thresholds": [0.1, 0.2, 0.3]}, (0.1, 0.2, 0.3)),
        ({"thresholds": {"joy": 0.2, "mild fear": 0.3, "anger": 0.1}}, (0.1, 0.2, 0.3)),
        ({"thresholds": [0.1, 0.2, 0.3], "threshold": 0.9}, (0.1, 0.2, 0.3)),
    ],
)
def test_thresholds_are_kept(fields: dict[str, Any], expected: tuple[float, ...]) -> None:
    task = from_config(CONFIG | fields)
    assert isinstance(task, MultiLabel)
    assert task.thresholds == expected
    written = {
        "architectures": [task.own_class()],
        "problem_type": task.problem_type,
        "id2label": {str(i): name for i, name in enumerate(NAMES)},
        **task.to_config(),
    }
    again = from_own_config(written, 3)
    assert again.to_config() == {"thresholds": list(expected or (0.5, 0.5, 0.5))}
    assert isinstance(again, MultiLabel)
    assert again.cuts == pytest.approx(task.cuts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"thresholds": [0.5, 0.5]}, "thresholds holds 2 numbers, the model has 3 labels"),
        ({"thresholds": {"joy": 0.5}}, "thresholds has no entry for 'anger'"),
        ({"thresholds": [0.5, 1, 0.5]}, "thresholds holds 1, a threshold is a probability"),
        ({"threshold": True}, "threshold holds True"),
        ({"threshold": "high"}, "threshold holds 'high'"),
        ({"threshold": float("nan")}, "threshold holds nan"),
    ],
)
def test_thresholds_that_are_none(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        from_config(CONFIG | fields)


def test_a_threshold_is_one_of_probabilities() -> None:
    task = MultiLabel(("a", "b"), (0.9, 0.1))
    shares = np.array([[0.89, 0.09], [0.91, 0.11]])
    logits = np.log(shares / (1 - shares))
    assert task.predictions(logits).tolist() == [[0, 0], [1, 1]]
    assert task.same_answers(logits, logits[::-1]).tolist() == [False, False]
    assert task.same_answers(logits, logits - 1e-3).all()
    none, both = task.answers(logits)
    assert (none.label, none.labels, none.score) == (None, (), pytest.approx(0.89))  # type: ignore[union-attr]
    assert (both.label, both.labels) == ("a", ("a", "b"))  # type: ignore[union-attr]


# Label values ------------------------------------------------------------------------------

MATRIX = [[1, 0, 1], [0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    "values",
    [
        [["anger", "mild fear"], [], ["Joy "]],
        [[0, 2], [], [1]],
        [[0.0, 2.0], [], ["1"]],
        [["anger", "mild fear", "anger"], [], ["joy"]],
        [[1, 0, 1], [0, 0, 0], [0, 1, 0]],
        [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
        [[True, False, True], [False] * 3, [False, True, False]],
        [ZerosAndOnes(x) for x in MATRIX],
        ["['anger', 'mild fear']", "[]", '["joy"]'],
        ["[0, 2]", "[]", "[1]"],
    ],
)
def test_lists_of_labels(values: list[Any]) -> None:
    assert read(values) == MATRIX


@pytest.mark.parametrize("delimiter", ["|", ";", ",", "/", ", ", " | "])
def test_texts_with_a_delimiter(delimiter: str) -> None:
    texts = [delimiter.join(["anger", "mild fear"]), "joy", f"joy{delimiter}anger"]
    assert read(texts) == [[1, 0, 1], [0, 1, 0], [1, 1, 0]]
    found = label_lists(texts, NAMES, (), fail)
    assert found.notes == (f"labels: texts are split at '{delimiter.strip()}'",)
    assert read([delimiter.join("02"), "1", "1"]) == [[1, 0, 1], [0, 1, 0], [0, 1, 0]]


def test_a_space_is_a_delimiter_where_no_name_has_one() -> None:
    assert read(["a b", "b", "c a"], ("a", "b", "c")) == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert read(["mild fear", "joy"]) == [[0, 0, 1], [0, 1, 0]]


@pytest.mark.parametrize(
    ("values", "names", "message"),
    [
        (
            ["a b", "a"],
            ("a", "b", "a b"),
            "row None: 'a b' may be read as one label or at ' '",
        ),
        ([[0, 1], [1, 0]], ("x", "y"), r"row None: a list such as \[0, 1\] may hold ids, or"),
        (["joy", "joy,ugly"], NAMES, "row 1: 'ugly' in 'joy,ugly' is none of the model's"),
        (["joy", "ugly"], NAMES, "row 1: label 'ugly' is neither an id nor one of"),
        ([["joy"], ["joy", "ugly"]], NAMES, "row 1: label 'ugly' is neither"),
        ([[0], [1, 7]], NAMES, r"row 1: label 7 is out of range, the model has 3 labels"),
        ([[0], [1, None]], NAMES, "row 1: the label is empty"),
        ([[0], [-1]], NAMES, "row 1: label -1 is out of range"),
        ([["joy"], ["joy"]], NAMES, "all 2 rows have 'joy', the model knows 3"),
        ([[], []], NAMES, "all 2 rows have no label"),
        ([[[0]], [1]], NAMES, r"row 0: label \[0\] is neither"),
    ],
)
def test_values_that_are_no_labels(
    values: list[Any], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(values, names)


def test_two_labels_as_zeros_and_ones() -> None:
    """A row with both, or with a label twice, settles what the others are."""
    assert read([[0, 1], [1, 1]], ("x", "y")) == [[0, 1], [1, 1]]
    assert read([[0.0, 1.0], [1.0, 0.0]], ("x", "y")) == [[0, 1], [1, 0]]
    assert read([[0, 1], [1]], ("x", "y")) == [[1, 1], [0, 1]]


@settings(max_examples=60)
@given(
    values=st.lists(
        st.lists(st.sampled_from([*NAMES, 0, 1, 2, "0", 7, None, 0.5, "x", ""]), max_size=4)
        | st.text(alphabet="abjoy01[]',;| ", max_size=8)
        | st.integers(-3, 5)
        | st.floats(),
        max_size=4,
    )
)
def test_no_value_gives_a_traceback(values: list[Any]) -> None:
    try:
        found = read(values)
    except DataError:
        return
    assert len(found) == len(values)
    assert all(len(x) == 3 for x in found)


def test_every_delimiter_is_tried() -> None:
    for x in DELIMITERS:
        assert read([f"a{x}b", "a"], ("a", "b")) == [[1, 1], [1, 0]]


# Scores ------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(seed=st.integers(0, 2**32), share=st.sampled_from([0.05, 0.3, 0.8]))
def test_scores_as_in_scikit_learn(seed: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    p, y = (rng.random((2, 12, 3)) < share).astype(np.int64)
    p[0] = y[1] = 1  # every label occurs, so that both count the same labels
    for metric, average in (("micro-f1", "micro"), ("macro-f1", "macro")):
        expected = sklearn.metrics.f1_score(y, p, average=average, zero_division=0)
        assert TASK.score(metric, p, y) == pytest.approx(expected)
    right = sklearn.metrics.accuracy_score(y, p)
    assert TASK.score("subset-accuracy", p, y) == pytest.approx(right)
    assert TASK.score("agreement", p, y) == pytest.approx(right)


def test_a_label_that_never_occurs_counts_in_no_mean() -> None:
    y = np.array([[1, 0, 0], [1, 1, 0]])
    assert TASK.score("macro-f1", y, y) == 1.0
    assert TASK.score("macro-f1", y, np.array([[1, 0, 0], [1, 0, 0]])) == pytest.approx(0.5)


def test_how_often_labels_are_answered() -> None:
    p, y = np.array([[1, 1, 0], [0, 1, 0]]), np.array([[1, 0, 0], [1, 1, 0]])
    assert TASK.label_counts(p) == [1, 2, 0]
    assert TASK.label_counts(p, y) == [1, 1, 0]


def test_one_lost_row_of_several_labels_costs_more_than_one_label() -> None:
    """The worst case of micro-F1 loses whole rows, that of macro-F1 the rare label."""
    task = MultiLabel(tuple("abcde"))
    y = np.array([[1, 1, 1, 1, 0]] * 19 + [[0, 0, 0, 0, 1]])
    for metric, most in (("micro-f1", 5), ("macro-f1", 0)):
        worst = task.worst_case(metric, y, y, y, 1.0)
        before = task.scorer(metric, worst.dense, worst.labels)(worst.weights)
        losses = before - task.scorer(metric, worst.optimised, worst.labels)(worst.weights)
        assert losses.argmax() == most
        assert losses.max() > 0


def test_the_losses_of_a_row_without_a_label_train_nothing() -> None:
    logits = torch.randn(3, 3, requires_grad=True)
    labels = torch.tensor([[1, 0, 0], [-100, -100, -100], [0, 1, 1]])
    loss, count = TASK.label_loss(logits, labels)
    assert count == 2
    loss.backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert logits.grad[1].eq(0).all()
    assert logits.grad[0, 0] < 0 < logits.grad[0, 1]
