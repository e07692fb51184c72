"""The abstract task: everything that prumux asks of the meaning of labels.

Axis letters: N rows, B rows of a batch, T positions of a row, C labels, R weightings of rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import DataError, UsageError

from .labels import IGNORE, Fail, Labels
from .metrics import AGREEMENT, Floats, Metric, Predictions, Scorer
from .parts.by_query import ByQuery
from .parts.spans import Spans
from .parts.vectors import Vectors
from .prediction import Answer

Pooling = Literal["first", "all"]


class WorstCase(NamedTuple):
    """Rows with made-up rows added on which only the dense model is right."""

    dense: Predictions
    optimised: Predictions
    labels: Predictions
    weights: Floats
    """The weight of each row: [R, N]; the loss of the worst of the R weightings counts."""


class ConstantAnswer(NamedTuple):
    """The best answer that a model without knowledge of its rows can give, and its score."""

    answer: str
    score: float


@dataclass(frozen=True)
class Task(ByQuery, Vectors, Spans, ABC):
    """The meaning of a model's labels. A subclass is one task, an instance one label set."""

    labels: tuple[str, ...]
    """Names of the labels, [C]."""

    name: ClassVar[str]
    """The task's name in messages; no two tasks share it."""
    kind: ClassVar[str]
    """`task.kind` of a report, after the Hugging Face pipeline of that name."""
    problem: ClassVar[str]
    """`task.problem` of a report."""
    problem_type: ClassVar[str]
    """`problem_type` of the `config.json` that prumux writes."""
    head: ClassVar[str]
    """The end of the task's class names in Hugging Face, say `ForSequenceClassification`."""
    pooling: ClassVar[Pooling]
    """Positions that the head reads. `first`: logits are [B, C]; `all`: [B, T, C]."""
    columns: ClassVar[tuple[str, ...]]
    """Columns that may hold the labels, the usual one first; `--columns` renames them."""
    other_columns: ClassVar[tuple[str, ...]] = ()
    """Further usual names of such a column, which `--columns` does not know."""
    reads_words: ClassVar[bool] = False
    """Whether a row is a list of words instead of a text or a pair of texts."""
    ragged: ClassVar[bool] = False
    """Whether a row has an array of predictions instead of one prediction."""
    has_classes: ClassVar[bool] = True
    """Whether an answer is one of the labels, so that answers can be counted by class."""
    exclusive: ClassVar[bool] = True
    """Whether exactly one label holds, so that the data may number them in another order."""
    lists_labels: ClassVar[bool] = False
    """Whether a value of the label column is a list of labels, see `label_lists`."""
    agreement_meaning: ClassVar[str] = "The answers of both models have a correlation of"
    """The meaning of agreement where answers are no labels, for reports."""
    instability_meaning: ClassVar[str] = "share of rows whose answer depends on the partners"
    """The meaning of `instability`, for reports."""

    # Hugging Face's names ------------------------------------------------------------------

    @classmethod
    def auto_class(cls) -> str:
        """Name of the transformers Auto class that loads a model of this task."""
        return f"AutoModel{cls.head}"

    @classmethod
    def own_class(cls) -> str:
        """Name of prumux's model class, which `architectures` of `config.json` holds."""
        return f"Prumux{cls.head}"

    @classmethod
    @abstractmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """Whether a model whose class ends in `head` is of this task.

        Args:
            problem_type: as in `config.json`, None where it says nothing.
            labels: how many labels the model has.
        """

    @classmethod
    def of_config(cls, labels: tuple[str, ...], config: Mapping[str, Any]) -> Self:
        """The task with these names of labels, and what else a `config.json` says of it.

        Raises:
            ModelError: it says something that prumux cannot do.
        """
        del config
        return cls(labels)

    @classmethod
    def of_data(
        cls, task: Task, columns: Callable[[], Collection[str]], metric: str | None
    ) -> Self | None:
        """This task in place of another one, if the data or the metric say so, else None.

        Args:
            task: the task that the model's config names.
            columns: gives the names of the data's columns.
            metric: the metric that was asked for, if any.
        """
        del task, columns, metric
        return None

    def to_json(self) -> dict[str, Any]:
        """The task as a report shows it."""
        return {"kind": self.kind, "problem": self.problem, "labels": list(self.labels)}

    def to_config(self) -> dict[str, Any]:
        """Further keys of `config.json`, beside `problem_type` and the names of labels."""
        return {}

    def check(self, labels: int) -> None:
        """Check that each of the model's labels has a name of its own.

        Raises:
            ValueError: there are more or fewer names, one is no text, or two are the same.
        """
        if len(self.labels) != labels:
            raise ValueError(f"{len(self.labels)} names of {labels} labels")
        first: dict[str, int] = {}
        for i, name in enumerate(self.labels):
            if not isinstance(name, str):
                raise ValueError(f"label {i} is {name!r:.40}, not a text")
            if first.setdefault(name, i) != i:
                raise ValueError(
                    f"labels {first[name]} and {i} are both '{name:.40}'\n"
                    "give every label in id2label a name of its own"
                )

    @property
    def output_labels(self) -> tuple[str, ...]:
        """Names of a logit vector's entries for a server that answers with classes.

        Empty where the largest logit of a row is not its answer.
        """
        return ()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Columns of 0 and 1 that may hold the labels, one for each; empty = none may."""
        return ()

    # Labels of a data column ---------------------------------------------------------------

    @abstractmethod
    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Labels | None:
        """Labels of N rows as numbers; None if all are hidden.

        Args:
            values: the column, as it was read: [N].
            words: the words of each row, or its context where answers are spans; else None.
            fail: raises DataError; takes the row's number (None = the whole column) and text.
        """

    # Predictions and scores ----------------------------------------------------------------

    @abstractmethod
    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> Predictions:
        """Predictions of N rows.

        Args:
            logits: [N, C]; where `pooling` is `all`, per row [T, C].
            scored: where `pooling` is `all`, per row the positions that count: label ids [T]
                (-100 = does not count) or bool [T]; None = all positions.
        """

    @abstractmethod
    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """The prediction that a user gets for each row.

        Args:
            logits: [N, C]; for tasks that read words, per row [words, C].
        """

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that fit the task and its labels."""

    @property
    @abstractmethod
    def default_metric(self) -> str:
        """Name of the metric that is used where none is asked for."""

    def fitting(self, labels: Labels | None) -> tuple[Metric, ...]:
        """The metrics that labels of this form allow."""
        del labels
        return self.metrics

    def usual_metric(self, labels: Labels) -> str:
        """Name of the metric that is used for labels of this form."""
        del labels
        return self.default_metric

    def metric(self, name: str) -> Metric:
        """The metric of that name.

        Raises:
            UsageError: the metric does not fit the task.
        """
        found = {x.name: x for x in self.metrics}
        if name not in found:
            raise UsageError(
                f"metric '{name}' does not fit {self.name} with {len(self.labels)} labels; "
                f"these do: {', '.join(found)}: write, say, --metric {self.default_metric}"
            )
        return found[name]

    def score(self, metric: str, predictions: Predictions, labels: Predictions) -> float:
        """The score in [-1, 1]; arguments and errors as in `scorer`."""
        weights = np.ones((1, len(predictions)))
        return float(self.scorer(metric, predictions, labels)(weights)[0])

    def scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        """The score as a function of weights of the rows, [R, N] -> [R].

        Row i counts `weights[r, i]` times; a resample with replacement is such a weighting.

        Args:
            metric: name of one of `metrics`.
            predictions: as `predictions` returns them.
            labels: in the same form; per-position labels may still hold -100. For a metric
                that compares with the dense model: the dense model's predictions.

        Raises:
            UsageError: the metric does not fit the task.
            DataError: there are more or fewer predictions than labels.
        """
        self.metric(metric)
        if len(predictions) != len(labels):
            raise DataError(f"{len(predictions)} predictions for {len(labels)} labels")
        return self._scorer(metric, predictions, labels)

    @abstractmethod
    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        """`scorer` for a metric that fits and as many predictions as labels."""

    def right_rows(self, predictions: Predictions, labels: Predictions) -> NDArray[np.bool_]:
        """True for rows that a metric with the statistic `paired` counts as right, [N]."""
        return np.asarray(np.asarray(predictions) == np.asarray(labels), dtype=np.bool_)

    @abstractmethod
    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """The rows with `extra` more that cost the optimised model most.

        A bootstrap does not know of errors that did not occur in the sample. Its bound is
        therefore never below the loss on these rows (see `certificate/certificate.py`).
        """

    def chance(self, metric: str) -> float:
        """The score of a model that guesses: 1 / C where right answers are counted."""
        return 1 / len(self.labels) if self.metric(metric).counts_answers else 0.0

    def all_answers(self, predictions: Predictions) -> NDArray[Any]:
        """The answers of all rows in one array, without positions labelled -100."""
        if isinstance(predictions, tuple):
            kept = [x[x != IGNORE] for x in predictions]
            return np.concatenate(kept) if kept else np.zeros(0, np.int64)
        return np.asarray(predictions)

    def label_counts(
        self, answers: NDArray[Any], truth: NDArray[Any] | None = None
    ) -> list[int]:
        """Answers of each label, [C]; with `truth`, the right ones among them.

        Args:
            answers, truth: as `all_answers` returns them.
        """
        kept = answers if truth is None else answers[answers == truth]
        return [int(n) for n in np.bincount(kept, minlength=len(self.labels))]

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """The constant answer with the best score against some labels or predictions.

        Metrics that count answers, or weigh classes alike, are best for the most frequent
        class; F1 of one class, or of spans, may be best for any.
        """
        counts = np.bincount(self.all_answers(truth), minlength=len(self.labels))
        every = metric == "f1"
        answers = range(len(counts)) if every else [int(counts.argmax())]
        scores = [self.score(metric, self._always(c, truth), truth) for c in answers]
        best = int(np.argmax(scores))
        return ConstantAnswer(f"'{self.labels[answers[best]]}'", scores[best])

    def _always(self, answer: int, truth: Predictions) -> Predictions:
        if isinstance(truth, tuple):
            return tuple(np.full(int((x != IGNORE).sum()), answer) for x in truth)
        return np.full(len(truth), answer)

    def instability(self, draws: Sequence[Predictions]) -> float:
        """Share of predictions that are not the same in all draws, of the same rows."""
        together = np.stack([np.concatenate(x) if isinstance(x, tuple) else x for x in draws])
        return float((together != together[0]).any(0).mean())

    def other_answers(self, found: Predictions, certified: Predictions) -> tuple[int, int]:
        """Number of answers that are not the certified ones, and of all answers."""
        answers = sum(np.size(x) for x in found)
        return round((1 - self.score(AGREEMENT, found, certified)) * answers), answers

    # Training and importance ---------------------------------------------------------------

    @abstractmethod
    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean distance of a student's logits from the teacher's, both [N, C]."""

    def group_loss(
        self, student: Tensor, teacher: Tensor, groups: Tensor, temperature: float
    ) -> Tensor:
        """`logit_loss` of rows that belong to queries, whose numbers are `groups`, [N]."""
        del groups
        return self.logit_loss(student, teacher, temperature)

    @abstractmethod
    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Mean loss against labels, and over how many labels that is.

        Rows (or positions) without a label do not count; the loss is 0 if none has one.

        Args:
            logits: [B, C] or [B, T, C].
            labels: [B] or [B, T].
        """

    @abstractmethod
    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """Scalars whose squared gradients sum to the Fisher information of the predictions.

        Args:
            logits: [B, C] or [B, T, C].
            weight: factor of each prediction, [B] or [B, T]: see `fisher.signs`.
            random: draws classes where a task has many.
        """

    # Parity --------------------------------------------------------------------------------

    def answer_logits(
        self,
        logits: Sequence[NDArray[Any]],
        masks: Sequence[NDArray[Any]] | None,
    ) -> NDArray[np.float64]:
        """Logits that an answer depends on, [N, C], of batches [B, C] or [B, T, C].

        Args:
            logits: one array a batch.
            masks: attention masks [B, T], needed where `pooling` is `all`.

        Raises:
            ValueError: the masks are needed and missing.
        """
        if self.pooling == "all":
            if masks is None:
                raise ValueError("token tasks need the attention masks")
            logits = [x[m != 0] for x, m in zip(logits, masks, strict=True)]
        return np.concatenate([np.asarray(x, dtype=np.float64) for x in logits])

    def same_answers(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
        """True for rows of logits [N, C] with the same answer, [N]; default: same argmax."""
        return np.asarray(one.argmax(axis=-1) == other.argmax(axis=-1), dtype=np.bool_)
