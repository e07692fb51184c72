"""A store on disk for the models of pipelines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from prumux.optimizer.base.memory import release_memory
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.model.artifact import (
    SECOND,
    from_config,
    second_from_config,
    split_weights,
    to_config,
)
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Applied, Model
from prumux.optimizer.model.vocabulary.trim import with_pieces

from .context import Context
from .passes import Pass
from .pipeline import Pipeline

MASK = "masks."
"""Prefix of the names under which masks are stored beside the weights."""


@dataclass(frozen=True, eq=False)
class ModelStore:
    """Models that pipelines made from `given`, in entries `model-DIGEST` of the store."""

    given: Model
    store: Store

    @staticmethod
    def name(pipeline: Pipeline) -> str:
        """The name under which a pipeline's model is stored."""
        return f"model-{key(pipeline)}"

    def has(self, pipeline: Pipeline) -> bool:
        """True if the pipeline's model is stored."""
        return self.store.has(f"{self.name(pipeline)}-facts")

    def finished(self, pipeline: Pipeline) -> int:
        """Number of passes in the longest prefix with a stored model; 0 = there is none."""
        lengths = range(len(pipeline.passes), 0, -1)
        return next((n for n in lengths if self.has(pipeline.prefix(n))), 0)

    def save(self, pipeline: Pipeline, model: Model) -> None:
        """Store a model, and remove the checkpoints of its training."""
        name = self.name(pipeline)
        pending = {} if model.masks.all_true else dict(enumerate(model.masks.tensors))
        masks = {f"{MASK}{i}": mask for i, mask in pending.items()}
        second = {} if model.second is None else model.second.model.weights
        added = {f"{SECOND}{k}": x for k, x in second.items()}
        weights = {**model.weights, **added}
        changed = {k: x for k, x in weights.items() if not self._is_given(k, x)}
        self.store.tensors(name, lambda: {**changed, **masks})
        kept = model.kept_hidden
        self.store.json(
            f"{name}-facts",  # written last: it marks the weights as complete
            lambda: {
                "config": to_config(model),
                "history": [asdict(x) for x in model.history],
                "kept_hidden": None if kept is None else kept.tolist(),
                "given": [k for k in weights if k not in changed],
                "kept_pieces": model.kept_pieces,
            },
        )
        self.store.drop()

    def _is_given(self, name: str, weight: Tensor) -> bool:
        """True for a weight that equals the given model's, such as embeddings."""
        there = self.given.weights.get(name.removeprefix(SECOND))
        return there is not None and there.shape == weight.shape and torch.equal(there, weight)

    def load(self, pipeline: Pipeline) -> Model:
        """The pipeline's stored model; for the empty pipeline, the given model."""
        if not pipeline.passes:
            return self.given
        name = self.name(pipeline)
        facts = self.store.json(f"{name}-facts", dict)
        encoder, _ = from_config(facts["config"])
        held = self.store.tensors(name, dict)
        stored = {k: x for k, x in held.items() if not k.startswith(MASK)}
        given = {k: self.given.weights[k.removeprefix(SECOND)] for k in facts["given"]}
        weights, second = split_weights({**given, **stored})
        pending = [held[f"{MASK}{i}"] for i in range(len(held) - len(stored))]
        layers = len(encoder.layers)
        masks = Masks.full(encoder)
        if pending:
            masks = Masks(tuple(pending[:layers]), tuple(pending[layers:-1]), pending[-1])
        kept, pieces = facts["kept_hidden"], facts["kept_pieces"]
        return replace(
            self.given if pieces is None else with_pieces(self.given, pieces),
            encoder=encoder,
            weights=weights,
            masks=masks,
            history=tuple(Applied(**x) for x in facts["history"]),
            kept_hidden=None if kept is None else torch.tensor(kept),
            second=second_from_config(facts["config"], second, self.given),
        )

    def build(self, pipeline: Pipeline, ctx: Context) -> Model:
        """Run a pipeline, starting from the longest prefix with a stored model.

        The models after each pass that trains and after the last pass are stored.
        """
        done = self.finished(pipeline)
        model = self.load(pipeline.prefix(done))
        if done == len(pipeline.passes):
            return model
        ctx.progress.say(f"building {pipeline}")

        def after_pass(index: int, pass_: Pass, before: Model, after: Model) -> None:
            del before
            if pass_.training:
                self.save(pipeline.prefix(done + index + 1), after)

        model = Pipeline(pipeline.passes[done:]).run(model, ctx, after_pass)
        if not pipeline.passes[-1].training:
            self.save(pipeline, model)
        release_memory()
        return model
