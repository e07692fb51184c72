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
    """None for regression, and where no label of a multi-label model holds."""
    score: float
    """The likeliest label's probability in [0, 1]; for regression the value itself, or its
    sigmoid where the config.json of a reranker names that activation."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """The probability of every label; empty for regression."""
    labels: tuple[str, ...] = ()
    """The labels that hold, likeliest first, of a multi-label model; else empty."""


@dataclass(frozen=True)
class TextSpan:
    """The answer to a question: a span of its context."""

    answer: str
    """The characters of the span; empty where the context holds no answer."""
    score: float
    """Probability of the start times that of the end, among the tokens of the window that the
    answer is in."""
    start: int
    """Index of its first character in the context."""
    end: int
    """Index after its last character."""


Answer = Prediction | tuple[Prediction, ...] | TextSpan
"""One prediction a row, one a word of the row, or the answer to a question."""


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
