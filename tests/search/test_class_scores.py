"""Recalls of each class, and what results give to doubt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from prumux.optimizer.search.class_scores import (
    class_scores,
    suspicious_gains,
    table_rows,
    vanished,
)
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.tokens import Tokens

BINARY = Classification(("negative", "positive"))
MANY = Classification(tuple(f"c{i}" for i in range(30)))
NER = Tokens(("O", "B-PER", "I-PER"))


def test_recalls_equal_sklearn() -> None:
    rng = np.random.default_rng(0)
    y, p, q = (rng.integers(30, size=900) for _ in range(3))
    found = class_scores(p, q, y, MANY)
    assert found["agreement"] == pytest.approx((p == q).mean())
    for name, answers in (("dense", p), ("optimised", q)):
        recalls = sklearn.metrics.recall_score(y, answers, average=None)
        assert [x["recall"][name] for x in found["classes"]] == pytest.approx(recalls)
    assert sum(x["rows"] for x in found["classes"]) == 900


def test_without_labels_the_given_model_stands_for_them() -> None:
    p, q = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = class_scores(p, q, None, BINARY)
    assert found["against"] == "given model"
    assert [x["recall"]["optimised"] for x in found["classes"]] == [0.5, 1.0]


def test_tags_and_classes_without_rows() -> None:
    labels = (np.array([-100, 0, 1]), np.array([0]))
    p = (np.array([0, 1]), np.array([0]))
    found = class_scores(p, p, labels, NER)
    assert [x["rows"] for x in found["classes"]] == [2, 1, 0]
    assert found["classes"][2]["recall"]["dense"] is None


def test_the_table_shows_the_worst_of_very_many() -> None:
    y = np.arange(300) % 30
    q = np.where(y == 17, 0, y)
    lines = table_rows(class_scores(y, q, y, MANY))
    assert len(lines) == 7
    assert lines[1][0] == "  the 5 of 30 classes that lost most:"
    assert lines[2] == (
        "  recall of 'c17' (10)",
        "100.00 (10)",
        "0.00 (0)",
        "-100.00",
    )
    assert len(table_rows(class_scores(y % 2, y % 2, y % 2, BINARY))) == 3


def test_a_constant_answer_and_lost_classes_are_warned_of() -> None:
    y = np.arange(60) % 2
    (text,) = vanished(class_scores(y, 0 * y, y, BINARY), "test")
    assert "answers 'negative' on all test rows, the given model gives 2 different" in text
    many = np.arange(300) % 30
    (text,) = vanished(class_scores(many, np.where(many == 4, 5, many), many, MANY), "certify")
    assert "never answers 'c4' (10 times by the given model) on the certify rows" in text
    assert not vanished(class_scores(y, y, y, BINARY), "test")
    assert not vanished(class_scores(0 * y, 0 * y, y, BINARY), "test")


def test_gains_beyond_chance_name_likely_causes() -> None:
    def proof(loss: float, upper: float) -> dict[str, Any]:
        scores = {"metric": "accuracy", "score_dense": 0.102, "score": 0.102 - loss}
        return {**scores, "loss": loss, "loss_upper": upper, "pipeline": "slice"}

    (text,) = suspicious_gains({"certify": proof(0, 0.01)}, [proof(-0.197, -0.169)])
    assert "(slice) scores 29.90 accuracy on the certify rows, the given model 10.20" in text
    for cause in ("--labels", "--columns", "not trained"):
        assert cause in text
    assert not suspicious_gains({"certify": proof(-0.01, 0.003)}, [])
