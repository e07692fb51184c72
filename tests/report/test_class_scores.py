"""Recalls of each class, and what results give to doubt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from prumux.optimizer.report.class_scores import class_scores, lost_classes, unlikely_gains
from prumux.optimizer.report.contents import CertificateRecord, Score
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.tokens import Tokens

BINARY = Classification(("negative", "positive"))
MANY = Classification(tuple(f"c{i}" for i in range(30)))
NER = Tokens(("O", "B-PER", "I-PER"))


def test_recalls_equal_sklearn() -> None:
    rng = np.random.default_rng(0)
    y, p, q = (rng.integers(30, size=900) for _ in range(3))
    found = class_scores(p, q, y, MANY)
    assert found.agreement == pytest.approx((p == q).mean())
    for name, answers in (("dense", p), ("optimised", q)):
        recalls = sklearn.metrics.recall_score(y, answers, average=None)
        assert [getattr(x.recall, name) for x in found.classes] == pytest.approx(recalls)
    assert sum(x.rows for x in found.classes) == 900


def test_without_labels_the_given_model_stands_for_them() -> None:
    p, q = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1])
    found = class_scores(p, q, None, BINARY)
    assert found.against == "given model"
    assert [x.recall.optimised for x in found.classes] == [0.5, 1.0]


def test_tags_and_classes_without_rows() -> None:
    labels = (np.array([-100, 0, 1]), np.array([0]))
    p = (np.array([0, 1]), np.array([0]))
    found = class_scores(p, p, labels, NER)
    assert [x.rows for x in found.classes] == [2, 1, 0]
    assert found.classes[2].recall.dense is None


def test_a_constant_answer_and_lost_classes_are_warned_of() -> None:
    y = np.arange(60) % 2
    (text,) = lost_classes(class_scores(y, 0 * y, y, BINARY), "test")
    assert "answers 'negative' on all test rows, the given model gives 2 different" in text
    many = np.arange(300) % 30
    (text,) = lost_classes(
        class_scores(many, np.where(many == 4, 5, many), many, MANY), "certify"
    )
    assert "never answers 'c4' (10 times by the given model) on the certify rows" in text
    assert not lost_classes(class_scores(y, y, y, BINARY), "test")
    assert not lost_classes(class_scores(0 * y, 0 * y, y, BINARY), "test")


def test_gains_beyond_chance_name_likely_causes() -> None:
    def values(loss: float, upper: float) -> dict[str, Any]:
        scores = {"metric": "accuracy", "rows": 9, "score_dense": 0.102, "score": 0.102 - loss}
        bound = {"loss_upper": upper, "confidence": 0.95, "method": "tango"}
        return {**scores, "loss": loss, **bound}

    def certificate(loss: float, upper: float) -> CertificateRecord:
        return CertificateRecord(
            **values(loss, upper), pipeline="slice", limit=0.02, holds=True
        )

    same = Score(**values(0, 0.01), interval=(0.0, 1.0))
    (text,) = unlikely_gains(same, [certificate(-0.197, -0.169)])
    assert "(slice) scores 29.90 accuracy on the certify rows, the given model 10.20" in text
    for cause in ("--labels", "--columns", "not trained"):
        assert cause in text
    assert not unlikely_gains(Score(**values(-0.01, 0.003), interval=(0.0, 1.0)), [])
