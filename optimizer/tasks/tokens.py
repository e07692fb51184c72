"""Token classification: one of C tags for each word of a row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import DataError

from .fisher import class_scalars
from .labels import IGNORE, Fail, Ints, label_ids
from .losses import cross_entropy, kl_divergence
from .metrics import AGREEMENT, Metric, Predictions, Scorer, f1_of_counts
from .prediction import Answer, class_predictions
from .task import Pooling, Task, WorstCase

_SPAN_TAG = re.compile(r"O|[BIES]-.+")


@dataclass(frozen=True)
class Tokens(Task):
    """One tag for each word. Predictions are the class ids at a row's scored positions.

    Only the first sub-word of a word is scored.
    """

    name: ClassVar[str] = "token-classification"
    kind: ClassVar[str] = "token-classification"
    problem: ClassVar[str] = "classification"
    problem_type: ClassVar[str] = "single_label_classification"
    head: ClassVar[str] = "ForTokenClassification"
    pooling: ClassVar[Pooling] = "all"
    columns: ClassVar[tuple[str, ...]] = ("tags",)
    other_columns: ClassVar[tuple[str, ...]] = ("ner_tags", "labels")
    reads_words: ClassVar[bool] = True
    ragged: ClassVar[bool] = True

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True: Hugging Face's taggers ignore `problem_type`, too."""
        del problem_type, labels
        return True

    @property
    def has_spans(self) -> bool:
        """True if the labels are BIO or IOBES tags, whose spans can be scored."""
        return all(_SPAN_TAG.fullmatch(x) for x in self.labels) and any(
            x != "O" for x in self.labels
        )

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> tuple[Ints, ...]:
        """The class ids of each row's words, from ids (-100 = not scored) or label names."""
        assert words is not None
        row_of: list[int] = []
        for i, (tags, row) in enumerate(zip(values, words, strict=True)):
            if not isinstance(tags, list):
                fail(i, f"the tags are {tags!r:.40}, not a list: use jsonl or parquet")
            if len(tags) != len(row):
                fail(i, f"{len(row)} tokens but {len(tags)} tags: give each token one tag")
            row_of += [i] * len(row)
        flat = [x for tags in values for x in tags]

        def fail_at(at: int | None, text: str) -> NoReturn:
            fail(None if at is None else row_of[at], text)

        ids = label_ids(flat, self.labels, fail_at, allowed=IGNORE)
        return tuple(np.split(ids, np.cumsum([len(x) for x in words])[:-1]))

    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> tuple[Ints, ...]:
        """For each row, the class with the largest logit at each scored position."""
        rows = [np.asarray(x).argmax(-1) for x in logits]
        if scored is None:
            return tuple(rows)
        pairs = zip(rows, scored, strict=True)
        return tuple(r[: len(x)][x if x.dtype == bool else x != IGNORE] for r, x in pairs)

    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """For each row, a tuple with one prediction per word."""
        return [tuple(class_predictions(row, self.labels)) for row in logits]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Share of right tags, F1 of spans if the tags mark spans, and agreement.

        The independent draws are rows, not words, so all metrics are certified by bootstrap.
        """
        spans_f1 = (Metric("f1"),) if self.has_spans else ()
        accuracy = Metric("accuracy", counts_answers=True)
        return (accuracy, *spans_f1, replace(accuracy, name=AGREEMENT, needs_labels=False))

    @property
    def default_metric(self) -> str:
        """F1 of spans if the tags mark spans, else accuracy."""
        return "f1" if self.has_spans else "accuracy"

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        counts = np.zeros((len(labels), 3))  # numbers of hits, found and true
        for i, (p, y) in enumerate(zip(predictions, labels, strict=True)):
            kept = y[y != IGNORE]
            if len(p) != len(kept):
                raise DataError(f"row {i + 1}: {len(p)} predictions for {len(kept)} labels")
            if metric == "f1":
                found, true = spans(p, self.labels), spans(kept, self.labels)
                counts[i] = len(found & true), len(found), len(true)
            else:
                counts[i] = int((p == kept).sum()), len(p), len(kept)
        return f1_of_counts(counts)

    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """Adds copies of the rows, in which the optimised model misses every span or tag."""
        rows = len(dense)
        lost = tuple(self._lost(metric, y[y != IGNORE]) for y in labels)
        d, o, y2 = tuple(dense), tuple(optimised), tuple(labels)
        weights = np.concatenate([np.ones(rows), np.full(rows, extra / rows)])[None]
        return WorstCase(d + d, o + lost, y2 + y2, weights)

    def _lost(self, metric: str, labels: Ints) -> Ints:
        if metric == "f1" and "O" in self.labels:
            return np.full(len(labels), self.labels.index("O"))
        return (labels + 1) % len(self.labels)

    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """KL divergence of the softened predictions at each position, in nats."""
        return kl_divergence(student, teacher, temperature)

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Cross-entropy. Positions labelled -100 are ignored."""
        return cross_entropy(logits, labels)

    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """One scalar for each class, or for classes drawn at each position."""
        return class_scalars(logits, weight, random)


def spans(ids: NDArray[Any], labels: Sequence[str]) -> set[tuple[str, int, int]]:
    """The spans (type, first, last) of one row, by the rules of conlleval and seqeval.

    See https://github.com/chakki-works/seqeval.
    """
    tags = [labels[int(x)] for x in ids]
    found: set[tuple[str, int, int]] = set()
    previous, kind, start = "O", "", 0
    for i, tag in enumerate([*tags, "O"]):
        mark, _, name = tag.partition("-")
        if previous != "O" and (previous in "ES" or mark in "BSO" or name != kind):
            found.add((kind, start, i - 1))
        if mark != "O" and (mark in "BS" or previous in "ESO" or name != kind):
            start = i
        previous, kind = mark, name
    return found
