"""Try and certify candidates on a model and its data. Every finished step is stored.

`builder` makes the models. `predictions` makes predictions and scores.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from prumux.optimizer.base.environment import versions
from prumux.optimizer.base.errors import MissingError, PassError
from prumux.optimizer.base.store import Store, file_digest, key
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.certificate.certificate import CONFIDENCE, Certificate, certify
from prumux.optimizer.data.predict import mixed_together
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.cost import count_model
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.own_rows import own_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.timing.serving_point import ServingPoint

from .bisection import Trial
from .builder import Builder
from .predictions import CandidatePredictor, inexact
from .unseen_loss import LossEstimate, expected_loss

Record = Callable[[Mapping[str, Any]], None]
"""A function that records the facts of each trial."""


def no_record(trial: Mapping[str, Any]) -> None:
    """Record nothing."""
    del trial


@dataclass(frozen=True, eq=False)
class Evaluator:
    """Tries and certifies candidates of one given model on its data."""

    model: Model
    target: Target
    """The target that the user named. A target such as `auto` resolves to `targets`."""
    ctx: Context
    select_rows: Encoded
    certify_rows: Encoded
    test_rows: Encoded | None
    metric: str
    data_digest: str
    tokenizer_digest: str
    notes: tuple[str, ...]
    """The origin of the rows of each role, for the report."""
    warnings: tuple[str, ...]
    """Inputs that are not used, and replacements."""
    serving: ServingPoint
    targets: tuple[Target, ...]
    """Concrete targets. Candidates are scored, certified and packaged on the first one.

    The others are only timed."""
    record: Record = no_record

    @property
    def builder(self) -> Builder:
        """The builder of candidates' models."""
        return Builder(self.model, self.ctx)

    @property
    def predictor(self) -> CandidatePredictor:
        """Predicts candidates' answers on the rows of a role, and scores them."""
        rows = {
            "select": self.select_rows,
            "certify": self.certify_rows,
            "test": self.test_rows,
        }
        return CandidatePredictor(
            self.builder, rows, self.metric, self.data_digest, self.serving
        )

    def with_store(self, store: Store, record: Record) -> Evaluator:
        """This evaluator with another store for finished steps, and another `record`."""
        return replace(self, ctx=replace(self.ctx, store=store), record=record)

    def facts(self, space: Sequence[Pipeline], budget: Budget | None) -> dict[str, Any]:
        """Facts that must be the same in a resumed run and the interrupted one."""
        files = {x for p in space for y in p.passes for x in y.input_files}
        return {
            "model": self.model.source.get("digest", ""),
            "tokenizer": self.tokenizer_digest,
            "device": self.ctx.device,
            "data": self.data_digest,
            "passes": [str(p) for p in space],
            "files": {str(x): file_digest(x) for x in sorted(files)},
            "budget": None if budget is None else str(budget),
            "metric": self.metric,
            "target": str(self.target),
            "costs": None if self.ctx.costs is None else self.ctx.costs.digest,
            "batch": self.serving.batch,
            "length": self.serving.length,
            **({} if self.serving.arrivals == "sorted" else {"arrivals": "mixed"}),
            "seed": self.ctx.seed,
            "threads": self.ctx.threads,
            "versions": versions(),
        }

    def dense_score(self, role: str, target: Target | None = None) -> float:
        """The given model's score on the rows of a role, in torch or on an inexact target."""
        return self.predictor.score(Pipeline(()), role, target)

    def trial(self, pipeline: Pipeline) -> Trial:
        """Build a candidate and score it on the select rows.

        Raises:
            PassError: a pass failed, now or in an earlier run.
        """
        facts = self.ctx.store.json(self._trial_name(pipeline), lambda: self._try(pipeline))
        self.record(facts)
        found = _trial_of(pipeline, facts)
        if isinstance(found, PassError):
            raise found
        self.ctx.progress.say(
            f"  {pipeline}: expected loss {100 * found.loss:.2f} points "
            f"({100 * found.observed_loss:.2f} on the select rows)"
        )
        return found

    def tried(self, pipeline: Pipeline) -> Trial | PassError | None:
        """The candidate's finished trial, or its error; None = not tried yet."""
        name, store = self._trial_name(pipeline), self.ctx.store
        return _trial_of(pipeline, store.json(name, dict)) if store.has(name) else None

    def _trial_name(self, pipeline: Pipeline) -> str:
        return f"trial-{key(pipeline, *inexact(self.targets[0]))}"

    def _try(self, pipeline: Pipeline) -> dict[str, Any]:
        """Try a candidate and return facts to store, also of a failure.

        A missing library or device raises its error instead, and is not stored.
        """
        start = time.monotonic()
        about = {"pipeline": str(pipeline), "target": str(self.targets[0])}
        try:
            model = self.builder.build(pipeline)
        except PassError as error:
            if error.exit_code == MissingError.exit_code:
                raise
            return {**about, "error": str(error), "exit_code": error.exit_code}
        found = self.predictor.score(pipeline, "select", self.targets[0])
        answers = self.predictor.predict(pipeline, "select", self.targets[0])
        expected = expected_loss(self.predictor, pipeline, answers)
        return {
            **about,
            "metric": self.metric,
            "select_score": found,
            "select_loss": self.dense_score("select") - found,
            "expected": asdict(expected),
            "cost": count_model(model, self.ctx.length).to_json(),
            "seconds": time.monotonic() - start,
        }

    def certify(self, pipeline: Pipeline, limit: float, confidence: float) -> Certificate:
        """Bound a candidate's loss against the given model on the certify rows."""
        target = self.targets[0]
        proof = self.compare(pipeline, "certify", limit, confidence, target)
        verdict = "certified" if proof.holds else "not certified"
        self.ctx.progress.say(
            f"  {pipeline} on {target}: {verdict}, loss {100 * proof.loss:.2f} points, "
            f"at most {100 * proof.loss_upper:.2f} with {proof.confidence:.0%} confidence"
        )
        return proof

    def compare(
        self,
        pipeline: Pipeline,
        role: str,
        limit: float,
        confidence: float = CONFIDENCE,
        target: Target | None = None,
    ) -> Certificate:
        """Bound the loss of a candidate against the dense torch model on the rows of a role.

        The candidate runs on `target` if that is inexact, else in torch.
        """
        dense = self.predictor.predict(Pipeline(()), role)
        found = self.predictor.predict(pipeline, role, target)
        rows, seed = self.predictor.rows(role), self.ctx.seed
        slots = max([self.model.encoder.slots, *(x.slots for x in pipeline.passes)])
        mixed = rows if slots == 1 else own_rows(rows, self.builder.build(pipeline))
        by_length = self.ctx.arrivals == "sorted"
        return certify(
            self.metric,
            dense,
            found,
            rows.labels,
            self.model.task,
            limit,
            confidence,
            seed,
            groups=mixed_together(mixed, slots, seed, by_length=by_length),
        )

    def predict_certified(self, pipeline: Pipeline) -> None:
        """Compute and store the candidate's predictions for a certificate."""
        self.predictor.predict(pipeline, "certify", self.targets[0])

    def has_certified_predictions(self, pipeline: Pipeline) -> bool:
        """True if the predictions of `predict_certified` are stored."""
        name = self.predictor.name(pipeline, "certify", self.targets[0])
        return self.ctx.store.has(name)


def _trial_of(pipeline: Pipeline, facts: Mapping[str, Any]) -> Trial | PassError:
    """Read a trial, or its error, from stored facts."""
    if "error" in facts:
        return PassError(facts["error"], facts["exit_code"])
    expected = LossEstimate(**facts["expected"])
    return Trial(
        pipeline,
        score=facts["select_score"],
        loss=expected.loss,
        seconds=facts["seconds"],
        macs=facts["cost"]["macs"],
        select_loss=facts["select_loss"],
        changed=expected.changed,
        estimate_rows=expected.rows,
    )
