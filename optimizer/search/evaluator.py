"""Builds, scores and certifies candidates, each step stored when it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from prumux.optimizer.base.environment import versions
from prumux.optimizer.base.errors import MissingError, PassError, UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, file_digest, key
from prumux.optimizer.data.predict import BATCH, mixed_together, predict, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.artifact import from_config, to_config
from prumux.optimizer.model.cost import Cost, count
from prumux.optimizer.model.ir import Applied, Masks, Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Target, on_engine
from prumux.optimizer.tasks.metrics import Predictions

from .bisection import Trial
from .certificate import CONFIDENCE, Certificate, certify
from .partner_sensitivity import DRAWS, drawn

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.passes import Pass
    from prumux.optimizer.run.job import Request

MASK = "masks."
"""Names of masks among the stored weights."""
Record = Callable[[Mapping[str, Any]], None]


def nowhere(trial: Mapping[str, Any]) -> None:
    """Keep no record."""
    del trial


@dataclass(frozen=True, eq=False)
class Bench:
    """A model, its data and all that is needed to try pipelines on it."""

    model: Model
    target: Target
    ctx: Context
    select_rows: Encoded
    certify_rows: Encoded
    test_rows: Encoded | None
    metric: str
    data_digest: str
    tokenizer_digest: str
    notes: tuple[str, ...]
    request: Request
    targets: tuple[Target, ...]
    """On the first a candidate is scored, certified and shipped; others are only timed."""
    record: Record = nowhere

    def with_store(self, store: Store, record: Record) -> Bench:
        """The same bench, remembering its steps."""
        return replace(self, ctx=replace(self.ctx, store=store), record=record)

    def facts(self, space: Sequence[Pipeline]) -> dict[str, Any]:
        """What a resumed run must have in common with the interrupted one."""
        budget = self.request.budget
        return {
            "model": self.model.source.get("digest", ""),
            "tokenizer": self.tokenizer_digest,
            "device": self.request.device,
            "data": self.data_digest,
            "passes": [str(p) for p in space],
            "files": {
                str(x): file_digest(x) for p in space for y in p.passes for x in y.reads
            },
            "budget": None if budget is None else str(budget),
            "metric": self.metric,
            "labels": dict(self.request.labels),
            "target": str(self.target),
            "batch": self.request.batch,
            "length": self.request.length,
            "seed": self.ctx.seed,
            "threads": self.ctx.threads,
            "versions": versions(),
        }

    def serving(self) -> dict[str, Any]:
        """The serving point in numbers."""
        return {
            "batch": self.request.batch,
            "length": self.request.length or "data",
            "mean_tokens": self.ctx.length,
            "threads": self.ctx.threads,
        }

    def dense_score(self, role: str, target: Target | None = None) -> float:
        """The given model's score on the rows of a role, in torch or on a target."""
        return self._score(Pipeline(()), role, target)

    def order(self, space: Sequence[Pipeline]) -> list[Pipeline]:
        """Candidates by multiply-adds, most first; equal sizes keep the order of the text."""
        unique = {str(p): p for p in space}
        with self.ctx.progress.task("sizing candidates", len(unique)) as step:
            sized = []
            for pipeline in unique.values():
                sized.append((self.sketch(pipeline).macs, pipeline))
                step()
        return [p for _, p in sorted(sized, key=lambda x: -x[0])]

    def sketch(self, pipeline: Pipeline) -> Cost:
        """What the result will cost, read off the masks; nothing is cut or refitted."""
        shaping = Pipeline(
            tuple(p.stand_in() for p in pipeline.passes if p.shapes and not p.cuts)
        )
        model = shaping.run(self.model, replace(self.ctx, progress=Progress()))
        sizes = model.masks.sizes(model.encoder)
        return count(sizes, self.ctx.length)

    def untrained(self, pipeline: Pipeline) -> Model:
        """About the sizes that the pipeline gives; nothing is refitted or trained for it."""
        start = self._kept(pipeline)
        model = self._recall(Pipeline(pipeline.passes[:start])) if start else self.model
        shaping = tuple(p.stand_in() for p in pipeline.passes[start:] if p.shapes)
        return Pipeline(shaping).run(model, replace(self.ctx, progress=Progress()))

    def build(self, pipeline: Pipeline) -> Model:
        """The result; what a pipeline shares with one that was built is not redone."""
        start = self._kept(pipeline)
        model = self._recall(Pipeline(pipeline.passes[:start])) if start else self.model
        if start == len(pipeline.passes):
            return model
        self.ctx.progress.say(f"building {pipeline}")
        rest = Pipeline(pipeline.passes[start:])

        def watch(index: int, pass_: Pass, before: Model, after: Model) -> None:
            del before
            if pass_.trains:
                self._keep(Pipeline(pipeline.passes[: start + index + 1]), after)

        model = rest.run(model, self.ctx, watch)
        if not pipeline.passes[-1].trains:
            self._keep(pipeline, model)
        return model

    def training_s(self, pipeline: Pipeline) -> float:
        """Seconds of training still to be done, as far as the options tell."""
        rest = pipeline.passes[self._kept(pipeline) :]
        return sum(60 * (getattr(p, "minutes", None) or 0.0) for p in rest)

    def shares_training(self, one: Pipeline, other: Pipeline) -> bool:
        """Whether two begin with a training that is not done yet: one of them may wait."""
        for n, (mine, theirs) in enumerate(zip(one.passes, other.passes, strict=False), 1):
            if mine != theirs:
                return False
            if mine.trains and not self._is_kept(Pipeline(one.passes[:n])):
                return True
        return False

    def _kept(self, pipeline: Pipeline) -> int:
        """How many of the first passes are done already."""
        lengths = range(len(pipeline.passes), 0, -1)
        kept = (n for n in lengths if self._is_kept(Pipeline(pipeline.passes[:n])))
        return next(kept, 0)

    def _is_kept(self, pipeline: Pipeline) -> bool:
        return self.ctx.store.has(f"model-{key(pipeline)}-facts")

    def _keep(self, pipeline: Pipeline, model: Model) -> None:
        name = f"model-{key(pipeline)}"
        pending = {} if model.masks.all_true else dict(enumerate(model.masks.tensors))
        masks = {f"{MASK}{i}": mask for i, mask in pending.items()}
        self.ctx.store.tensors(name, lambda: {**model.weights, **masks})
        self.ctx.store.json(
            f"{name}-facts",  # last, since it says that the weights are whole
            lambda: {
                "config": to_config(model),
                "history": [asdict(x) for x in model.history],
                "kept_hidden": None
                if model.kept_hidden is None
                else model.kept_hidden.tolist(),
            },
        )
        self.ctx.store.drop()

    def _recall(self, pipeline: Pipeline) -> Model:
        name, store = f"model-{key(pipeline)}", self.ctx.store
        facts = store.json(f"{name}-facts", dict)
        encoder, task = from_config(facts["config"])
        held = store.tensors(name, dict)
        weights = {k: x for k, x in held.items() if not k.startswith(MASK)}
        pending = [held[f"{MASK}{i}"] for i in range(len(held) - len(weights))]
        half = len(encoder.layers)
        masks = Masks.full(encoder)
        if pending:
            masks = Masks(tuple(pending[:half]), tuple(pending[half:-1]), pending[-1])
        history = tuple(Applied(**x) for x in facts["history"])
        made = replace(self.model, encoder=encoder, task=task, weights=weights)
        kept = facts["kept_hidden"]
        return replace(
            made,
            masks=masks,
            history=history,
            kept_hidden=None if kept is None else torch.tensor(kept),
        )

    def trial(self, pipeline: Pipeline) -> Trial:
        """Build a candidate and score it on the select rows."""
        facts = self.ctx.store.json(self._trial(pipeline), lambda: self._try(pipeline))
        self.record(facts)
        found = _read(pipeline, facts)
        if isinstance(found, PassError):
            raise found
        self.ctx.progress.say(
            f"  {pipeline}: loss {100 * found.loss:.2f} points on the select rows"
        )
        return found

    def tried(self, pipeline: Pipeline) -> Trial | PassError | None:
        """A trial that was finished, or the error that it ended with; None = not yet."""
        name, store = self._trial(pipeline), self.ctx.store
        return _read(pipeline, store.json(name, dict)) if store.has(name) else None

    def _trial(self, pipeline: Pipeline) -> str:
        return f"trial-{key(pipeline, *_engines(self.targets[0]))}"

    def _try(self, pipeline: Pipeline) -> dict[str, Any]:
        """What is kept of a trial. A failure is kept too, unless something was missing."""
        start = time.monotonic()
        try:
            model = self.build(pipeline)
        except PassError as error:
            if error.exit_code == MissingError.exit_code:
                raise
            return {
                "pipeline": str(pipeline),
                "target": str(self.targets[0]),
                "error": str(error),
                "exit_code": error.exit_code,
            }
        found = self._score(pipeline, "select", self.targets[0])
        return {
            "pipeline": str(pipeline),
            "target": str(self.targets[0]),
            "metric": self.metric,
            "select_score": found,
            "select_loss": self.dense_score("select") - found,
            "cost": count(model.encoder, self.ctx.length).to_json(),
            "seconds": time.monotonic() - start,
        }

    def certify(self, pipeline: Pipeline, limit: float, confidence: float) -> Certificate:
        """Bound a candidate's loss on the certify rows."""
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
        """Dense in torch against a candidate on the rows of a role, paired.

        Without a target, or on an exact one, the candidate runs in torch as well.
        """
        dense = self._predict(Pipeline(()), role)
        found = self._predict(pipeline, role, target)
        rows, seed = self._rows(role), self.ctx.seed
        slots = max([self.model.encoder.slots, *(x.mixes for x in pipeline.passes)])
        return certify(
            self.metric,
            dense,
            found,
            rows.labels,
            self.model.task,
            limit,
            confidence,
            seed,
            groups=mixed_together(rows, slots, seed),
        )

    def outputs(
        self, pipeline: Pipeline, role: str, target: Target | None = None
    ) -> tuple[Predictions, Predictions]:
        """Predictions and what they are scored against: labels, or the dense predictions."""
        labels = self._rows(role).labels
        if labels is None or not self.model.task.metric(self.metric).needs_labels:
            labels = self._predict(Pipeline(()), role)
        return self._predict(pipeline, role, target), labels

    def mixing(self, model: Model) -> dict[str, int]:
        """Arguments of `predict`: who is mixed with whom, where rows are mixed."""
        slots = model.encoder.slots
        return {} if slots == 1 else {"slots": slots, "seed": self.ctx.seed}

    def mixed(self, pipeline: Pipeline, role: str) -> dict[str, Any] | None:
        """How far a role's score depends on who is mixed with whom; None if nothing is."""
        model = self.build(pipeline)
        if model.encoder.mux is None:
            return None
        name = f"mixed-{key(pipeline, role, self.model.source, self.data_digest)}"
        rows = self._rows(role)
        labels = self.outputs(pipeline, role)[1]

        def make() -> dict[str, Any]:
            with self.ctx.progress.task("drawing partners", DRAWS) as step:
                return asdict(drawn(model, rows, labels, self.metric, step))

        found: dict[str, Any] | None = self.ctx.store.json(name, make)
        return found

    def answers(self, pipeline: Pipeline, target: Target) -> Predictions:
        """The predictions on the certify rows that were certified."""
        return self._predict(pipeline, "certify", target)

    def answer(self, pipeline: Pipeline) -> None:
        """Make all predictions that a certificate needs."""
        self.answers(pipeline, self.targets[0])

    def answered(self, pipeline: Pipeline) -> bool:
        """Whether `answer` was done."""
        return self.ctx.store.has(self.predictions_name(pipeline, "certify", self.targets[0]))

    def _rows(self, role: str) -> Encoded:
        rows = {
            "select": self.select_rows,
            "certify": self.certify_rows,
            "test": self.test_rows,
        }[role]
        if rows is None:
            raise UsageError(f"there are no {role} rows")
        return rows

    def _score(self, pipeline: Pipeline, role: str, target: Target | None = None) -> float:
        found, labels = self.outputs(pipeline, role, target)
        return self.model.task.score(self.metric, found, labels)

    def predictions_name(
        self, pipeline: Pipeline, role: str, target: Target | None = None
    ) -> str:
        """Under which predictions are stored."""
        about = (pipeline, role, self.model.source, self.data_digest, *_engines(target))
        return f"predictions-{key(*about)}"

    def _predict(
        self, pipeline: Pipeline, role: str, target: Target | None = None
    ) -> Predictions:
        rows, where = self._rows(role), _engines(target)
        total = -(-len(rows) // BATCH)

        def make() -> dict[str, torch.Tensor]:
            title = (
                f"scoring {role} rows" if pipeline.passes else f"scoring {role} rows, dense"
            )
            model = self.build(pipeline)
            with self.ctx.progress.task(title, total) as step, ExitStack() as stack:
                run = (
                    stack.enter_context(on_engine(where[0], model, self.ctx)).run
                    if where
                    else torch_run(model)
                )
                found = predict(run, rows, model.task, step, **self.mixing(model))
            many = found if isinstance(found, tuple) else (found,)
            return {str(i): torch.as_tensor(x) for i, x in enumerate(many)}

        kept = self.ctx.store.tensors(self.predictions_name(pipeline, role, target), make)
        arrays = tuple(kept[str(i)].numpy() for i in range(len(kept)))
        return arrays if self.model.task.ragged else arrays[0]


def _engines(target: Target | None) -> tuple[Target, ...]:
    """The engine that predictions depend on: none if it answers as torch does."""
    return () if target is None or target.exact else (target,)


def _read(pipeline: Pipeline, facts: Mapping[str, Any]) -> Trial | PassError:
    """A trial, or the error that it ended with, of what is kept."""
    if "error" in facts:
        return PassError(facts["error"], facts["exit_code"])
    loss, macs = facts["select_loss"], facts["cost"]["macs"]
    return Trial(pipeline, facts["select_score"], loss, facts["seconds"], macs)
