"""`cascade`: a second, larger model answers the rows with a small margin.

A row x is deferred to the second model if the margin m(x) between its two best logits in the
first is below a threshold t:

    m(x) = z(1)(x) - z(2)(x) < t,    where a share `defer` of the select rows has m(x) < t

A row to which both models give the same answer keeps this answer. So few answers change.

Wang et al. 2020, https://arxiv.org/abs/2012.01988 (confidence cascades of classifiers).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import PassError, SpecError
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.model.cascade import check_given, threshold_at
from prumux.optimizer.model.model import Model, SecondStage
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.model_store import ModelStore
from prumux.optimizer.pipeline.passes import Pass, TrainingLength
from prumux.optimizer.pipeline.pipeline import Pipeline


@dataclass(frozen=True)
class Cascade(Pass):
    """Let a second model, made by another pipeline, answer the rows with the smallest margins.

    This pass comes last in a pipeline. The second model is made from the given model, not from
    the model that this pass receives.

    Example: `pool-early,prune{sparsity=0.9},slice,cascade{to="" defer=0.2}`
    """

    name: ClassVar[str] = "cascade"
    last: ClassVar[str] = "chose its threshold for the models as they were"
    most_rows: ClassVar[int | None] = None
    to: str = field(
        default="",
        metadata={"help": 'pipeline of the second model, in quotes; "" = the given model'},
    )
    defer: float = field(
        default=0.2, metadata={"help": "share of the select rows to defer, in [0, 1]"}
    )
    max_share: float = field(
        default=1.0,
        metadata={
            "help": "largest share of a batch to defer; below 1 answers depend on the batch"
        },
    )

    def __post_init__(self) -> None:
        if not 0 <= self.defer <= 1:
            raise ValueError(f"defer must be in [0, 1], not {self.defer}")
        if not 0 < self.max_share <= 1:
            raise ValueError(f"max_share must be above 0 and at most 1, not {self.max_share}")
        passes = self.second_stage
        wrong = next((x for x in passes if x.slots > 1 or x.last), None)
        if wrong is not None:
            raise ValueError(
                f"to: '{wrong}' cannot be: the second model takes rows one by one, as they are"
            )
        if Pipeline(passes).uncut:
            raise ValueError("to marks what to prune and does not cut it out: add slice")

    @property
    def second_stage(self) -> tuple[Pass, ...]:
        """The passes of `to`."""
        try:
            return Pipeline.parse(self.to).passes if self.to.strip() else ()
        except SpecError as error:
            raise ValueError(f"to: {error}") from error

    @property
    def training(self) -> TrainingLength | None:
        """Total length of the training in the passes of `to`."""
        return Pipeline(self.second_stage).training

    @property
    def measures(self) -> bool:
        """True if any pass of `to` measures, see `Pass.measures`."""
        return any(x.measures for x in self.second_stage)

    @property
    def input_files(self) -> tuple[Path, ...]:
        """The input files of the passes of `to`, see `Pass.input_files`."""
        return tuple(file for x in self.second_stage for file in x.input_files)

    def sketch(self) -> Pass:
        """Return the same cascade with untrained models."""
        return _Sketch(**{x: getattr(self, x) for x in ("to", "defer", "max_share")})

    def check_given(self, model: Model) -> None:
        """Refuse models that do not classify each row into one of several classes."""
        check_given(model.task, model.encoder)

    def requires(self, model: Model) -> None:
        """Refuse other tasks than classification, and masks that are not cut out yet."""
        self.check_given(model)
        if not model.masks.all_true:
            why = "cascade takes finished models and masks are pending"
            raise PassError(f"{why}\nwrite slice before it: slice,cascade", exit_code=2)

    def run(self, model: Model, ctx: Context) -> Model:
        """Return the model with a second stage."""
        second = self._second(ctx)
        given = _margins(model, ctx, self.most_rows)
        threshold = threshold_at(given, self.defer)
        share = float((given < threshold).mean())
        quantiles = np.quantile(given, np.linspace(0, 1, 21)).round(4).tolist()
        notes: dict[str, Any] = {"threshold": threshold, "deferred": share, "rows": len(given)}
        notes |= {"margins": quantiles, "second": [asdict(x) for x in second.history]}
        second = replace(second, history=(), notes={})
        stage = SecondStage(second, threshold, share, self.max_share)
        return replace(model, second=stage, notes=notes)

    def _second(self, ctx: Context) -> Model:
        """Build the second model, or load it if the run has built it before."""
        return ModelStore(ctx.dense, ctx.store).build(Pipeline(self.second_stage), ctx)


@dataclass(frozen=True)
class _Sketch(Cascade):
    """A cascade of untrained models. Accepts pending masks and stores nothing."""

    most_rows: ClassVar[int | None] = 256

    def requires(self, model: Model) -> None:
        """Accept any model, also with pending masks."""

    def _second(self, ctx: Context) -> Model:
        quick = tuple(y for x in self.second_stage if (y := x.sketch()) is not None)
        return Pipeline(quick).run(ctx.dense, ctx)


def _margins(model: Model, ctx: Context, most_rows: int | None) -> NDArray[np.float32]:
    """A model's margins on the select rows, [N]."""
    rows, slots = ctx.select or ctx.fit, model.encoder.slots
    mixing: dict[str, Any] = {"slots": slots, "seed": ctx.seed} if slots > 1 else {}
    rows = rows.take(range(len(rows))[:most_rows])
    found = row_logits(torch_run(model), rows, None, **mixing)
    return margins(np.stack(found))
