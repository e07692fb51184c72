"""The abstract base class of tasks. A task defines the meaning of a model's labels.

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
    """Real rows and invented rows, which only the given model answers correctly."""

    dense: Predictions
    optimised: Predictions
    labels: Predictions
    weights: Floats
    """Weights of the rows, [R, N]. The weighting with the largest loss counts."""


class ConstantAnswer(NamedTuple):
    """The best answer of a model that ignores its input, and the score of this answer."""

    answer: str
    score: float


@dataclass(frozen=True)
class Task(ByQuery, Vectors, Spans, ABC):
    """The meaning of a model's labels. A subclass is a task, an instance a set of labels."""

    labels: tuple[str, ...]
    """Names of the labels, [C]."""

    name: ClassVar[str]
    """The task's name in messages; no two tasks share it."""
    kind: ClassVar[str]
    """`task.kind` of a report: the name of a Hugging Face pipeline."""
    problem: ClassVar[str]
    """`task.problem` of a report."""
    problem_type: ClassVar[str]
    """`problem_type` of the `config.json` that prumux writes."""
    head: ClassVar[str]
    """The end of the task's class names in Hugging Face, say `ForSequenceClassification`."""
    pooling: ClassVar[Pooling]
    """Positions that the head reads. `first`: logits are [B, C]; `all`: [B, T, C]."""
    columns: ClassVar[tuple[str, ...]]
    """Possible names of the label column, the usual one first. `--columns` renames it."""
    other_columns: ClassVar[tuple[str, ...]] = ()
    """Further usual names of the label column. `--columns` does not accept them."""
    reads_words: ClassVar[bool] = False
    """True if a row is a list of words instead of a text or a pair of texts."""
    ragged: ClassVar[bool] = False
    """True if a row has an array of predictions instead of one prediction."""
    has_classes: ClassVar[bool] = True
    """True if every answer is one of the labels. Answers can then be counted by class."""
    exclusive: ClassVar[bool] = True
    """True if exactly one label applies. The data may then number the labels differently."""
    lists_labels: ClassVar[bool] = False
    """True if a value of the label column is a list of labels, see `label_lists`."""
    agreement_meaning: ClassVar[str] = "The answers of both models have a correlation of"
    """A report's text about agreement, for tasks whose answers are not labels."""
    instability_meaning: ClassVar[str] = "share of rows whose answer depends on the partners"
    """A report's text about `instability`."""

    # Hugging Face's names ------------------------------------------------------------------

    @classmethod
    def auto_class(cls) -> str:
        """Name of the transformers Auto class that loads a model of this task."""
        return f"AutoModel{cls.head}"

    @classmethod
    def own_class(cls) -> str:
        """Name of prumux's model class, as written to `architectures` of `config.json`."""
        return f"Prumux{cls.head}"

    @classmethod
    @abstractmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True if a model whose class name ends in `head` has this task.

        Args:
            problem_type: the key of `config.json`; None if it is missing.
            labels: the model's number of labels.
        """

    @classmethod
    def of_config(cls, labels: tuple[str, ...], config: Mapping[str, Any]) -> Self:
        """The task with these label names, and with the task's other keys of `config.json`.

        Raises:
            ModelError: a key has a value that prumux does not support.
        """
        del config
        return cls(labels)

    @classmethod
    def of_data(
        cls, task: Task, columns: Callable[[], Collection[str]], metric: str | None
    ) -> Self | None:
        """This task, if the data or the metric require it instead of `task`; else None.

        Args:
            task: the task that the model's config names.
            columns: returns the names of the data's columns.
            metric: the metric that the user chose, if any.
        """
        del task, columns, metric
        return None

    def to_json(self) -> dict[str, Any]:
        """The task's entry in a report."""
        return {"kind": self.kind, "problem": self.problem, "labels": list(self.labels)}

    def to_config(self) -> dict[str, Any]:
        """Further keys of `config.json`, in addition to `problem_type` and label names."""
        return {}

    def check(self, labels: int) -> None:
        """Check that each of the model's labels has a unique name.

        Raises:
            ValueError: the number of names is wrong, one is not a text, or two are equal.
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
        """Names of a logit vector's entries, for a server that answers with classes.

        The tuple is empty if a row's largest logit is not its answer.
        """
        return ()

    @property
    def label_columns(self) -> tuple[str, ...]:
        """Possible label columns of 0 and 1, one for each label; empty for most tasks."""
        return ()

    # Labels of a data column ---------------------------------------------------------------

    @abstractmethod
    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Labels | None:
        """Labels of N rows as numbers; None if all labels are hidden.

        Args:
            values: the values of the label column, [N].
            words: the words of each row, or the contexts if answers are spans; else None.
            fail: raises DataError for a row number (None = the whole column) and a text.
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
            logits: [N, C]; if `pooling` is `all`, one array [T, C] per row.
            scored: for `pooling` `all`, the scored positions of each row, as label ids [T]
                (-100 = not scored) or bool [T]; None = all positions.
        """

    @abstractmethod
    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """The answer for each row, in the form that users get.

        Args:
            logits: [N, C]; for tasks that read words, one array [words, C] per row.
        """

    @property
    @abstractmethod
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics that fit the task and its labels."""

    @property
    @abstractmethod
    def default_metric(self) -> str:
        """Name of the metric that is used if the user chooses none."""

    def fitting(self, labels: Labels | None) -> tuple[Metric, ...]:
        """The metrics that can be computed with labels of this form."""
        del labels
        return self.metrics

    def usual_metric(self, labels: Labels) -> str:
        """Name of the default metric for labels of this form."""
        del labels
        return self.default_metric

    def metric(self, name: str) -> Metric:
        """The metric with this name.

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
        """The score in [-1, 1]. Arguments and errors are those of `scorer`."""
        weights = np.ones((1, len(predictions)))
        return float(self.scorer(metric, predictions, labels)(weights)[0])

    def scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        """The score as a function of row weights, [R, N] -> [R].

        In weighting r, row i counts `weights[r, i]` times, as in a resample with replacement.

        Args:
            metric: name of one of `metrics`.
            predictions: the predictions, in the form that `predictions` returns.
            labels: the labels in the same form. Labels of positions may contain -100. Metrics
                without labels get the given model's predictions.

        Raises:
            UsageError: the metric does not fit the task.
            DataError: the numbers of predictions and labels differ.
        """
        self.metric(metric)
        if len(predictions) != len(labels):
            raise DataError(f"{len(predictions)} predictions for {len(labels)} labels")
        return self._scorer(metric, predictions, labels)

    @abstractmethod
    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        """`scorer` after its checks of the metric and of the number of rows."""

    def right_rows(self, predictions: Predictions, labels: Predictions) -> NDArray[np.bool_]:
        """True for rows with a right answer, [N], if the metric's statistic is `paired`."""
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
        """The rows, plus `extra` rows that cost the optimised model most.

        A bootstrap misses errors that did not occur in the sample. So the bound is never below
        the loss on these rows (see `certificate/certificate.py`).
        """

    def chance(self, metric: str) -> float:
        """The score of a guessing model: 1 / C if the metric counts right answers, else 0."""
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
        """Number of answers of each label, [C]. With `truth`, only right answers are counted.

        Args:
            answers, truth: in the form that `all_answers` returns.
        """
        kept = answers if truth is None else answers[answers == truth]
        return [int(n) for n in np.bincount(kept, minlength=len(self.labels))]

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """The constant answer with the best score against labels or predictions.

        For metrics that count answers, or that weigh classes equally, this is the most
        frequent class. For F1 of one class or of spans, every class is tried.
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
        """Share of predictions that differ between draws of the groups of mixed rows."""
        together = np.stack([np.concatenate(x) if isinstance(x, tuple) else x for x in draws])
        return float((together != together[0]).any(0).mean())

    def other_answers(self, found: Predictions, certified: Predictions) -> tuple[int, int]:
        """Number of answers that differ from the certified ones, and number of all answers."""
        answers = sum(np.size(x) for x in found)
        return round((1 - self.score(AGREEMENT, found, certified)) * answers), answers

    # Training and importance ---------------------------------------------------------------

    @abstractmethod
    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean distance between the student's and the teacher's logits, both [N, C]."""

    def group_loss(
        self, student: Tensor, teacher: Tensor, groups: Tensor, temperature: float
    ) -> Tensor:
        """`logit_loss` for rows that belong to queries; `groups` are query numbers, [N]."""
        del groups
        return self.logit_loss(student, teacher, temperature)

    @abstractmethod
    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Mean loss against labels, and the number of labels in the mean.

        Rows or positions without a label are ignored. The loss is 0 if there is no label.

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
            weight: factor of each prediction, [B] or [B, T]; see `fisher.signs`.
            random: the generator for drawing classes, if a task has many.
        """

    # Parity --------------------------------------------------------------------------------

    def answer_logits(
        self,
        logits: Sequence[NDArray[Any]],
        masks: Sequence[NDArray[Any]] | None,
    ) -> NDArray[np.float64]:
        """The logits that determine answers, [N, C], from batches [B, C] or [B, T, C].

        Args:
            logits: one array for each batch.
            masks: attention masks [B, T], required if `pooling` is `all`.

        Raises:
            ValueError: the required masks are missing.
        """
        if self.pooling == "all":
            if masks is None:
                raise ValueError("token tasks need the attention masks")
            logits = [x[m != 0] for x, m in zip(logits, masks, strict=True)]
        return np.concatenate([np.asarray(x, dtype=np.float64) for x in logits])

    def same_answers(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
        """True for rows of logits [N, C] with the same answer, [N]. Default: equal argmax."""
        return np.asarray(one.argmax(axis=-1) == other.argmax(axis=-1), dtype=np.bool_)
