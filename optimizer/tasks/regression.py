"""Regression: one number for each text or pair of texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prumux.optimizer.base.errors import ModelError

from .labels import Fail
from .metrics import AGREEMENT, Floats, Metric, Predictions, Scorer, pearson, spearman
from .prediction import Answer, Prediction
from .task import ConstantAnswer, Pooling, Task, WorstCase

Activation = Literal["identity", "sigmoid"]
_ACTIVATIONS: dict[str, Activation] = {
    "torch.nn.modules.linear.Identity": "identity",
    "torch.nn.modules.activation.Sigmoid": "sigmoid",
    "torch.nn.Identity": "identity",
    "torch.nn.Sigmoid": "sigmoid",
}
"""Names of activations that sentence transformers writes to config.json."""
OLD_ACTIVATION = "sbert_ce_default_activation_function"
"""The activation's key in config.json before sentence transformers 4."""


@dataclass(frozen=True)
class Regression(Task):
    """One score per row: the first logit, or its sigmoid if a reranker's config names one."""

    activation: Activation = "identity"
    """The function that turns a logit into the predicted score."""

    name: ClassVar[str] = "regression"
    kind: ClassVar[str] = "text-classification"
    problem: ClassVar[str] = "regression"
    problem_type: ClassVar[str] = "regression"
    head: ClassVar[str] = "ForSequenceClassification"
    pooling: ClassVar[Pooling] = "first"
    has_classes: ClassVar[bool] = False
    exclusive: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = ("score", "label")
    other_columns: ClassVar[tuple[str, ...]] = ("scores", "labels")
    instability_meaning: ClassVar[str] = "deviation of a row's answers over that of the rows"

    @classmethod
    def reads(cls, problem_type: str | None, labels: int) -> bool:
        """True for models with one label, if `problem_type` is `regression` or missing."""
        return problem_type in (cls.problem_type, None) and labels == 1

    @classmethod
    def of_config(cls, labels: tuple[str, ...], config: Mapping[str, Any]) -> Self:
        """See `Task.of_config`. Reads the activation of a sentence transformers reranker."""
        block = config.get("sentence_transformers")
        key, named = "sentence_transformers.activation_fn", None
        if isinstance(block, Mapping):
            named = block.get("activation_fn")
        elif block is not None:
            named = block
        if named is None and config.get(OLD_ACTIVATION) is not None:
            key, named = OLD_ACTIVATION, config[OLD_ACTIVATION]
        found = "identity" if named is None else _ACTIVATIONS.get(str(named))
        if found is None:
            raise ModelError(
                f"config.json: {key} is {named!r:.80}, prumux computes Identity and Sigmoid\n"
                f"write {' or '.join(list(_ACTIVATIONS)[:2])}, or remove it for raw scores"
            )
        return cls(labels, found)

    def read_labels(
        self, values: Sequence[Any], words: Sequence[Sequence[str]] | None, fail: Fail
    ) -> Floats | None:
        """Scores [N] as float64; None if every value is -1 (hidden labels)."""
        del words
        scores = np.empty(len(values))
        for i, value in enumerate(values):
            try:
                number = isinstance(value, str | int | float) and not isinstance(value, bool)
                scores[i] = float(value) if number else np.nan
            except (ValueError, OverflowError):
                scores[i] = np.nan
            if not np.isfinite(scores[i]):
                fail(i, f"score {value!r:.40} is not a finite number: mend or remove the row")
        return None if (scores == -1).all() else scores

    def predictions(
        self,
        logits: NDArray[Any] | Sequence[NDArray[Any]],
        scored: Sequence[NDArray[Any]] | None = None,
    ) -> Floats:
        """The score of each row, [N]."""
        del scored
        values = np.asarray(logits)
        first = np.asarray(values.reshape(len(values), -1)[:, 0], dtype=np.float64)
        # tanh does not overflow; exp would.
        return first if self.activation == "identity" else 0.5 + 0.5 * np.tanh(first / 2)

    def answers(self, logits: Sequence[NDArray[Any]] | NDArray[Any]) -> list[Answer]:
        """The value of each row, without a label."""
        return [Prediction(None, float(x)) for x in self.predictions(logits)]

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Pearson's and Spearman's correlation, and agreement with the given model.

        Agreement is Pearson's correlation with the given model's values.
        """
        return (
            Metric("pearson"),
            Metric("spearmanr"),
            Metric(AGREEMENT, needs_labels=False),
        )

    @property
    def default_metric(self) -> str:
        """Pearson's correlation."""
        return "pearson"

    def _scorer(self, metric: str, predictions: Predictions, labels: Predictions) -> Scorer:
        p, y = np.asarray(predictions), np.asarray(labels)
        return spearman(p, y) if metric == "spearmanr" else pearson(p, y)

    def worst_case(
        self,
        metric: str,
        dense: Predictions,
        optimised: Predictions,
        labels: Predictions,
        extra: float,
    ) -> WorstCase:
        """Adds copies of the rows, with optimised values that are mirrored at their mean."""
        del metric
        p, q, y = (np.asarray(x, dtype=np.float64) for x in (dense, optimised, labels))
        weights = np.concatenate([np.ones(len(y)), np.full(len(y), extra / len(y))])[None]
        mirrored = np.concatenate([q, 2 * q.mean() - q])
        return WorstCase(np.tile(p, 2), mirrored, np.tile(y, 2), weights)

    def best_constant(self, metric: str, truth: Predictions) -> ConstantAnswer:
        """One number for all rows. Its score is 0: a constant correlates with nothing."""
        del metric, truth
        return ConstantAnswer("one number", 0.0)

    def instability(self, draws: Sequence[Predictions]) -> float:
        """Mean standard deviation of a row over draws, relative to that of all rows."""
        together = np.stack([np.asarray(x) for x in draws])
        spread = float(together.mean(0).std())
        return float(together.std(0).mean()) / spread if spread else 0.0

    def logit_loss(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared error of the values. The temperature is ignored."""
        del temperature
        return F.mse_loss(student.float(), teacher.float())

    def label_loss(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, int]:
        """Mean squared error. Rows labelled NaN are ignored."""
        found, scores = logits.float().flatten(0, -2), labels.flatten()
        known = scores.isfinite()
        count = int(known.sum())
        if not count:
            return found.sum() * 0.0, 0
        values = found[known].squeeze(-1)
        values = values if self.activation == "identity" else values.sigmoid()
        return F.mse_loss(values, scores[known].float()), count

    def fisher_scalars(
        self, logits: Tensor, weight: Tensor, random: torch.Generator
    ) -> list[Tensor]:
        """The value itself, as for a normal distribution with variance 1."""
        del random
        return [(logits[..., 0] * weight).sum()]
