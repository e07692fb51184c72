"""The answers that users get from `Predictor.predict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prediction:
    """The answer for one text, or for one word of a token task."""

    label: str | None
    """The likeliest label; None for regression, or if a multi-label model finds none."""
    score: float
    """The probability of the likeliest label, in [0, 1].

    For regression it is the value itself, or the sigmoid of the value if the config.json of a
    reranker names this activation.
    """
    scores: Mapping[str, float] = field(default_factory=dict)
    """The probability of every label; empty for regression."""
    labels: tuple[str, ...] = ()
    """The applicable labels of a multi-label model, likeliest first; else empty."""


@dataclass(frozen=True)
class TextSpan:
    """The answer to a question: a span of its context."""

    answer: str
    """The characters of the span; empty if the context contains no answer."""
    score: float
    """Probability of the start, multiplied by the probability of the end. Both are softmax
    values over the tokens of the answer's window."""
    start: int
    """Index of the span's first character in the context."""
    end: int
    """Index after the span's last character."""


Answer = Prediction | tuple[Prediction, ...] | TextSpan
"""One prediction for a row, one for each word of a row, or the answer to a question."""


def class_predictions(logits: NDArray[Any], labels: Sequence[str]) -> list[Prediction]:
    """The likeliest class of each row of logits [N, C], with the softmax of all classes."""
    wide = logits.astype(np.float64)
    powers = np.exp(wide - wide.max(-1, keepdims=True))
    shares = powers / powers.sum(-1, keepdims=True)
    found = []
    for row, best in zip(shares.tolist(), shares.argmax(-1).tolist(), strict=True):
        scores = dict(zip(labels, row, strict=True))
        found.append(Prediction(labels[best], row[best], scores))
    return found
