"""Build the models of candidates. Pipelines with a common prefix share its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.model.cost import Cost, count_model
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.model_store import ModelStore
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline


@dataclass(frozen=True, eq=False)
class Builder:
    """Runs pipelines on the given model."""

    model: Model
    ctx: Context

    @property
    def models(self) -> ModelStore:
        """The store of models that were built before."""
        return ModelStore(self.model, self.ctx.store)

    def build(self, pipeline: Pipeline) -> Model:
        """Run a pipeline, starting from the longest prefix with a stored model.

        The models after each pass that trains and after the last pass are stored.
        """
        return self.models.build(pipeline, self.ctx)

    def untrained(self, pipeline: Pipeline) -> Model:
        """A model with about the shapes of the pipeline's result, not refitted or trained."""
        done = self.models.finished(pipeline)
        return self._sketched(pipeline.passes[done:], self.models.load(pipeline.prefix(done)))

    def cost(self, pipeline: Pipeline) -> Cost:
        """Estimate the cost of a pipeline's result from masks, without cuts or training."""
        shaping = [x for x in pipeline.passes if x.masks != "cuts"]
        model = self._sketched(shaping, self.model)
        return count_model(model, self.ctx.length)

    def by_cost(self, space: Sequence[Pipeline]) -> list[Pipeline]:
        """Distinct candidates, most multiply-adds first. Ties keep their order."""
        unique = {str(p): p for p in space}
        with self.ctx.progress.task("sizing candidates", len(unique)) as tick:
            sized = []
            for pipeline in unique.values():
                sized.append((self.cost(pipeline).macs, pipeline))
                tick()
        return [p for _, p in sorted(sized, key=lambda x: -x[0])]

    def training_s(self, pipeline: Pipeline) -> float:
        """Seconds of training that are still to do, without training counted in epochs."""
        rest = pipeline.passes[self.models.finished(pipeline) :]
        return sum(60 * (x.training.minutes or 0.0) for x in rest if x.training)

    def shares_training(self, one: Pipeline, other: Pipeline) -> bool:
        """True if both pipelines begin with the same training, and it is still to do."""
        for n, (mine, theirs) in enumerate(zip(one.passes, other.passes, strict=False), 1):
            if mine != theirs:
                return False
            if mine.training and not self.models.has(one.prefix(n)):
                return True
        return False

    def _sketched(self, passes: Sequence[Pass], model: Model) -> Model:
        quick = tuple(x for p in passes if (x := p.sketch()) is not None)
        return Pipeline(quick).run(model, replace(self.ctx, progress=Progress()))
