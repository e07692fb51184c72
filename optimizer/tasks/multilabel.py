"""Multi-label classification: any number of C labels for each text or pair of texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import ModelError

from .fisher import DRAWS, EXACT_CLASSES
from .label_lists import first_labels
from .labels import IGNORE, Fail, Ints, label_ids
from .metrics import (
    AGREEMENT,
    Floats,
    Metric,
    Predictions,
    Scorer,
    f1_of_counts,
    macro_f1_of_sets,
    share,
)
from .prediction import Answer, Prediction
from .task import ConstantAnswer, Pooling, Task, WorstCase

THRESHOLD = 0.5
"""Default threshold: a label applies if its probability is above it."""
RARE_LABELS = 16
"""The number of rarest labels that the worst case tries. Errors on rare labels cost most."""


@dataclass(frozen=True)
class MultiLabel(Task):
    """A set of labels for each row, one sigmoid per label. Predictions are 0 or 1, [N, C]."""

    thresholds: tuple[float, ...] = ()
    """The probability above which each label applies, [C]; empty = `THRESHOLD` for all."""

    name: ClassVar[str] = "multi-label-classification"
    kind: ClassVar[str] = "text-classification"
    problem: ClassVar[str] = "multi-label"
    problem_type: ClassVar[str] = "multi_label_classification"
    head: ClassVar[str] = "ForSequenceClassification"
    pooling: ClassVar[Pooling] = "first"
    exclusive: ClassVar[bool] = False
    lists_labels: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ("labels", "label")

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True for this `problem_type`. Models without one give one label per row."""
        del labels
        return problem_type == cls.problem_type

    @classmethod
    def of_config(cls, labels: tuple[str, ...], config: Mapping[str, Any]) -> Self:
        """See `Task.of_config`. Reads `thresholds`, a list or by label, or one `threshold`."""
        key = "threshold" if config.get("thresholds") is None else "thresholds"
        given = config.get(key)
        if given is None:
            return cls(labels)
        if isinstance(given, Mapping):
            unknown = [x for x in labels if x not in given]
            if unknown:
                raise ModelError(f"config.json: {key} has no entry for '{unknown[0]:.40}'")
            given = [given[x] for x in labels]
        values = given if isinstance(given, list | tuple) else [given] * len(labels)
        if len(values) != len(labels):
            raise ModelError(
                f"config.json: {key} holds {len(values)} numbers, the model has "
                f"{len(labels)} labels\ngive one for each, in their order"
            )
        for x in values:
            number = isinstance(x, int | float) and not isinstance(x, bool)
            if not number or not 0 < x < 1:
                raise ModelError(
                    f"config.json: {key} holds {x!r:.40}, a threshold is a probability "
                    "between 0 and 1\nwrite, say, 0.5"
                )
        return cls(labels, tuple(float(x) for x in values))

    def to_config(self) -> dict[str, Any]:
        """The thresholds, in the order of the labels."""
        return {"thresholds": list(self.thresholds or [THRESHOLD] * len(self.labels))}

    @property
    def label_columns(self) -> tuple[str, ...]:
        """One column of 0 and 1 for each label."""
        return self.labels

    @property
    def output_labels(self) -> tuple[str, ...]:
        """All labels: the largest logits belong to the likeliest labels."""
        return self.labels

    @property
    def cuts(self) -> Floats:
        """The logit above which each label applies, [C]."""
        shares = self.thresholds or [THRESHOLD] * len(self.labels)
        return np.array([math.log(x / (1 - x)) for x in shares])

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Ints:
        """1 if a label applies, else 0, [N, C], from lists of ids or names."""
        del words
        row_of = [i for i, x in enumerate(values) for _ in x]

        def fail_at(at: int | None, text: str) -> NoReturn:
            fail(None if at is None else row_of[at], text)

        ids = label_ids([y for x in values for y in x], self.labels, fail_at, allowed=0)
        found = np.zeros((len(values), len(self.labels)), dtype=np.int64)
        found[row_of, ids] = 1
        if len(found) and (found == found[0]).all():
            held = first_labels(self.labels, found[0].tolist())
            fail(
                None,
                f"all {len(found)} rows have {held}, the model knows {len(self.labels)}: give "
                "rows whose labels differ",
            )
        return found

    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> Ints:
        """1 if a label's probability is above its threshold, else 0, [N, C]."""
        del scored
        return (np.asarray(logits) > self.cuts).astype(np.int64)

    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """For each row, its labels, likeliest first, and the probability of every label."""
        # tanh does not overflow; exp would.
        shares = 0.5 + 0.5 * np.tanh(np.asarray(logits, dtype=np.float64) / 2)
        found: list[Answer] = []
        for row, held in zip(shares, self.predictions(logits), strict=True):
            order = [i for i in np.argsort(-row, kind="stable") if held[i]]
            labels = tuple(self.labels[i] for i in order)
            scores = dict(zip(self.labels, row.tolist(), strict=True))
            best = labels[0] if labels else None
            found.append(Prediction(best, float(row.max(initial=0.0)), scores, labels))
        return found

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Micro-F1, macro-F1, subset accuracy and agreement.

        For subset accuracy, all labels of a row must be right. For agreement, all labels of a
        row must be the given model's.
        """
        return (
            Metric("micro-f1"),
            Metric("macro-f1", classes_alike=True),
            Metric("subset-accuracy", "paired", counts_answers=True),
            Metric(AGREEMENT, "paired", needs_labels=False, counts_answers=True),
        )

    @property
    def default_metric(self) -> str:
        """F1 over all labels of all rows."""
        return "micro-f1"

    def chance(self, metric: str) -> float:
        """0: a guessed set of labels is hardly ever right."""
        self.metric(metric)
        return 0.0

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        p, y = np.asarray(predictions), np.asarray(labels)
        if metric == "micro-f1":
            counts = [(p & y).sum(1), p.sum(1), y.sum(1)]
            return f1_of_counts(np.stack(counts, axis=1).astype(np.float64))
        if metric == "macro-f1":
            return macro_f1_of_sets(p, y)
        return share(self.right_rows(p, y))

    def right_rows(self, predictions: Predictions, labels: Predictions) -> NDArray[np.bool_]:
        """True for rows whose labels are all right, [N]."""
        same = np.asarray(predictions) == np.asarray(labels)
        return np.asarray(same.all(axis=1), dtype=np.bool_)

    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """Adds rows whose only label is mistaken, or copies of all rows without their labels.

        Mistaking one rare label for another costs macro-F1 most. Losing all labels of rows
        with several labels costs micro-F1 most.
        """
        del metric
        p, q, y = (np.asarray(x) for x in (dense, optimised, labels))
        rows, classes = y.shape
        counts = y.sum(0)
        rarest = [int(c) for c in np.argsort(counts, kind="stable")]
        chosen = [c for c in rarest if counts[c]][:RARE_LABELS] or rarest[:1]
        single = np.eye(classes, dtype=np.int64)
        taken_for = [next((c for c in rarest if c != k), None) for k in chosen]
        wrong = np.stack([single[0] * 0 if c is None else single[c] for c in taken_for])
        # A row without labels becomes wrong if it gets one.
        lost = np.where(y.any(1, keepdims=True), 0, single[rarest[-1]])
        weights = np.zeros((len(chosen) + 1, rows + len(chosen) + rows))
        weights[:, :rows] = 1
        weights[:-1, rows : rows + len(chosen)] = extra * np.eye(len(chosen))
        weights[-1, rows + len(chosen) :] = extra / rows
        return WorstCase(
            np.concatenate([p, single[chosen], y]),
            np.concatenate([q, wrong, lost]),
            np.concatenate([y, single[chosen], y]),
            weights,
        )

    def label_counts(
        self, answers: NDArray[Any], truth: NDArray[Any] | None = None
    ) -> list[int]:
        """See `Task.label_counts`."""
        held = answers if truth is None else answers & truth
        return [int(n) for n in held.sum(0)]

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """The constant set of labels with the best score.

        - micro-F1: the k most frequent labels, with the best k.
        - macro-F1: every label that occurs.
        - shares of right rows: the most frequent set.
        """
        y = np.asarray(truth)
        counts = y.sum(0)
        order = np.argsort(-counts, kind="stable")
        if metric == "micro-f1":
            top = np.cumsum(counts[order])
            most = int(
                np.argmax(2 * top / (len(y) * np.arange(1, len(top) + 1) + counts.sum()))
            )
            held = np.isin(np.arange(len(counts)), order[: most + 1])
        elif metric == "macro-f1":
            held = counts > 0
        else:
            sets, times = np.unique(y, axis=0, return_counts=True)
            held = sets[int(times.argmax())] > 0
        row = held.astype(np.int64)
        score = self.score(metric, np.tile(row, (len(y), 1)), y)
        return ConstantAnswer(first_labels(self.labels, row.tolist()), score)

    def instability(self, draws: Sequence[Predictions]) -> float:
        """Share of rows whose labels differ between draws of the groups."""
        together = np.stack([np.asarray(x) for x in draws])
        return float((together != together[0]).any(axis=(0, 2)).mean())

    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 times the KL divergence of softened sigmoids, summed over labels, in nats."""
        t = temperature
        got, aim = student.float() / t, teacher.float() / t
        wanted = aim.sigmoid()
        each = F.binary_cross_entropy_with_logits(got, wanted, reduction="none")
        least = F.binary_cross_entropy_with_logits(aim, wanted, reduction="none")
        return t * t * (each - least).sum(-1).mean()

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Binary cross-entropy, summed over labels. Rows labelled -100 are ignored."""
        known = (labels != IGNORE).all(-1)
        count = int(known.sum())
        if not count:
            return logits.float().sum() * 0.0, 0
        each = F.binary_cross_entropy_with_logits(
            logits[known].float(), labels[known].float(), reduction="none"
        )
        return each.sum(-1).mean(), count

    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """The scalar sqrt(p (1 - p)) z for each label with probability p and logit z.

        The Fisher information of a Bernoulli variable about its logit is p (1 - p). With many
        labels, there are `DRAWS` sums over labels with random signs. Their cross terms vanish
        on average.
        """
        p = logits.detach().sigmoid()
        each = (p * (1 - p)).sqrt() * logits * weight.unsqueeze(-1)
        if logits.shape[-1] <= EXACT_CLASSES:
            return [each[..., c].sum() for c in range(logits.shape[-1])]
        found = []
        for _ in range(DRAWS):
            signs = torch.randint(0, 2, each.shape, generator=random).to(each) * 2 - 1
            found.append((each * signs).sum() / DRAWS**0.5)
        return found

    def same_answers(self, one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.bool_]:
        """True for rows of logits [N, C] with the same labels, [N]."""
        return self.right_rows(self.predictions(one), self.predictions(other))
