"""Stored predictions of candidates on the rows of each role, and their scores."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.store import key
from prumux.optimizer.data.predict import BATCH, predictions_of, row_logits, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.cascade import has_margins
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.own_rows import own_context, own_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Target, on_engine
from prumux.optimizer.tasks.metrics import Predictions
from prumux.optimizer.timing.serving_point import ServingPoint

from .builder import Builder
from .partner_sensitivity import DRAWS, partner_sensitivity

MARGINS = "margins"
"""Name of the margins among the stored predictions."""


@dataclass(frozen=True, eq=False)
class CandidatePredictor:
    """Predicts and scores. Predictions are entries `answers-DIGEST` of the run's store.

    A role is `select`, `certify` or `test`. If `target` is None or exact, the torch module
    predicts. Otherwise the target's engine predicts.
    """

    builder: Builder
    rows_by_role: Mapping[str, Encoded | None]
    metric: str
    data_digest: str
    serving: ServingPoint

    @property
    def model(self) -> Model:
        """The given model."""
        return self.builder.model

    @property
    def ctx(self) -> Context:
        """The context of the run."""
        return self.builder.ctx

    def rows(self, role: str) -> Encoded:
        """The rows of a role.

        Raises:
            UsageError: the role has no rows.
        """
        rows = self.rows_by_role[role]
        if rows is None:
            raise UsageError(f"there are no {role} rows")
        return rows

    def context_of(self, model: Model) -> Context:
        """The context with rows and workload in the tokens of the model's own tokenizer."""
        certify, point = self.rows("certify"), self.serving
        return own_context(self.ctx, model, certify, point.batch, point.length)

    def name(self, pipeline: Pipeline, role: str, target: Target | None = None) -> str:
        """The name under which predictions are stored."""
        order = () if self.ctx.arrivals == "sorted" else (self.ctx.arrivals,)
        about = (pipeline, role, self.model.source, self.data_digest, *inexact(target), *order)
        return f"answers-{key(*about)}"

    def predict(
        self, pipeline: Pipeline, role: str, target: Target | None = None
    ) -> Predictions:
        """Predictions of a candidate on the rows of a role, computed once a run."""
        kept = self._answers(pipeline, role, target)
        many = len(kept) - (MARGINS in kept)
        arrays = tuple(kept[str(i)].numpy() for i in range(many))
        return arrays if self.model.task.ragged else arrays[0]

    def margins(
        self, pipeline: Pipeline, role: str, target: Target | None = None
    ) -> NDArray[np.float32]:
        """A candidate's margins on the rows of a role, [N], see `model/cascade.py`.

        The task must have margins, see `has_margins`.
        """
        found: NDArray[np.float32] = self._answers(pipeline, role, target)[MARGINS].numpy()
        return found

    def _answers(
        self, pipeline: Pipeline, role: str, target: Target | None
    ) -> Mapping[str, torch.Tensor]:
        """Predictions, with a number for each array; and margins, if the task has them."""
        given, engine_target = self.rows(role), inexact(target)

        def make() -> dict[str, torch.Tensor]:
            title = (
                f"scoring {role} rows" if pipeline.passes else f"scoring {role} rows, dense"
            )
            model = self.builder.build(pipeline)
            rows = own_rows(given, model)
            with (
                self.ctx.progress.task(title, -(-len(given) // BATCH)) as tick,
                ExitStack() as stack,
            ):
                run = (
                    # Parity is checked later, when the winner is packaged.
                    stack.enter_context(
                        on_engine(engine_target[0].draft(), model, self.context_of(model))
                    ).run
                    if engine_target
                    else torch_run(model)
                )
                logits = row_logits(run, rows, tick, **self.mixing(model))
            found = predictions_of(logits, rows, model.task)
            many = found if isinstance(found, tuple) else (found,)
            made = {str(i): torch.as_tensor(x) for i, x in enumerate(many)}
            if has_margins(model.task):
                made[MARGINS] = torch.as_tensor(margins(np.stack(logits)))
            return made

        return self.ctx.store.tensors(self.name(pipeline, role, target), make)

    def with_labels(
        self, pipeline: Pipeline, role: str, target: Target | None = None
    ) -> tuple[Predictions, Predictions]:
        """Predictions, and their reference: labels, or for agreement the given model's."""
        labels = self.rows(role).labels
        if labels is None or not self.model.task.metric(self.metric).needs_labels:
            labels = self.predict(Pipeline(()), role)
        return self.predict(pipeline, role, target), labels

    def score(self, pipeline: Pipeline, role: str, target: Target | None = None) -> float:
        """The candidate's score on the rows of a role."""
        found, labels = self.with_labels(pipeline, role, target)
        return self.model.task.score(self.metric, found, labels)

    def mixing(self, model: Model) -> dict[str, Any]:
        """Arguments of `predict` that decide which rows are mixed with each other."""
        slots = model.encoder.slots
        order = {} if self.ctx.arrivals == "sorted" else {"by_length": False}
        return order if slots == 1 else {"slots": slots, "seed": self.ctx.seed, **order}

    def partner_sensitivity(self, pipeline: Pipeline, role: str) -> dict[str, Any] | None:
        """The effect of a row's partners on the score; None without multiplexing."""
        model = self.builder.build(pipeline)
        if model.encoder.mux is None:
            return None
        name = f"mixed-{key(pipeline, role, self.model.source, self.data_digest)}"
        rows, labels = own_rows(self.rows(role), model), self.with_labels(pipeline, role)[1]

        def make() -> dict[str, Any]:
            with self.ctx.progress.task("drawing partners", DRAWS) as tick:
                by_length = self.ctx.arrivals == "sorted"
                return asdict(
                    partner_sensitivity(
                        model, rows, labels, self.metric, tick, by_length=by_length
                    )
                )

        found: dict[str, Any] | None = self.ctx.store.json(name, make)
        return found


def inexact(target: Target | None) -> tuple[Target, ...]:
    """The target if predictions depend on its engine; () if they do not."""
    return () if target is None or target.exact else (target,)
