"""Exports dense and chosen side by side, times them, and ships what is not slower."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from prumux.optimizer.base.errors import GateError
from prumux.optimizer.data.predict import BATCH, predict
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Emitted, Engine, Target
from prumux.optimizer.search.evaluator import Bench
from prumux.optimizer.tasks.metrics import AGREEMENT
from prumux.optimizer.timing.serving_point import UNTIMED, Speed, compare

from .workspace import Workspace

OTHER_ANSWERS = 0.001
"""Share of answers that may differ from the certified ones; one may in any case."""


@dataclass(frozen=True, eq=False)
class Exported:
    """One model on one target."""

    pipeline: Pipeline
    target: Target
    model: Model
    emitted: Emitted
    engine: Engine
    folder: Path
    size_bytes: int
    speed: Speed = field(default=UNTIMED)


@dataclass(frozen=True, eq=False)
class Shipped:
    """What was measured together; `optimised` is what the artifact folder holds."""

    dense: Exported
    optimised: Exported
    dropped: Exported | None = None
    """What was chosen, where its engine turned out slower than the dense one."""
    beside: tuple[Exported, ...] = ()
    """Other engines timed in the same rounds: the dense model and the chosen one in other
    precisions."""


def ship(bench: Bench, chosen: Pipeline, workspace: Workspace) -> Shipped:
    """Export, time interleaved, and stage the artifact folder's files.

    The given model runs on the baseline target and on those that lower something, the chosen
    one on all; its engine on the first is shipped, which is the one that was certified. The
    never-slower gate: if that is slower than the given model's, it is dropped.
    """
    ctx, dense = bench.ctx, Pipeline(())
    wanted = [(dense, bench.target.baseline())]
    wanted += [(dense, target) for target in bench.targets if not target.exact]
    wanted += [(chosen, target) for target in bench.targets]
    best_at = len(wanted) - len(bench.targets)
    exported = [
        _export(bench, *which, workspace.engines / str(i)) for i, which in enumerate(wanted)
    ]
    first, *others = _timed(bench, exported)
    if _slower(first.speed, others[best_at - 1].speed):
        first, *others = _timed(bench, exported)  # busy machines may say so, but hardly twice
    best = others.pop(best_at - 1)
    for engine in (first, best):
        _check_answers(bench, engine)
    shipped = Shipped(first, best, beside=tuple(others))
    if _slower(first.speed, best.speed):
        ctx.progress.say("the optimised engine is slower than the dense one and was dropped")
        shipped = Shipped(first, first, dropped=best, beside=tuple(others))
    _stage(shipped.optimised, workspace.staging)
    best = shipped.optimised
    best.target.bundle(best.model, ctx, workspace.staging)
    return shipped


def _export(bench: Bench, pipeline: Pipeline, target: Target, folder: Path) -> Exported:
    """A model's engine, not timed yet."""
    model = bench.build(pipeline)
    name = str(pipeline) if pipeline.passes else "dense"
    with bench.ctx.progress.task(f"exporting {name} to {target}", 1):
        emitted = target.emit(model, bench.ctx, folder)
    engine = target.engine(folder, bench.ctx.threads)
    size = sum((folder / name).stat().st_size for name in emitted.files)
    return Exported(pipeline, target, model, emitted, engine, folder, size)


def _timed(bench: Bench, exported: Sequence[Exported]) -> list[Exported]:
    """All, timed in the same rounds."""
    speeds = compare([x.engine for x in exported], bench.ctx.workload, bench.ctx.progress)
    return [replace(x, speed=speed) for x, speed in zip(exported, speeds, strict=True)]


def _slower(dense: Speed, other: Speed) -> bool:
    """Slower in the median round and in the best one, so that noise alone does not decide."""
    best = other.rows_per_second_high < dense.rows_per_second_high
    return other.throughput_ratio < 1 and best


def _check_answers(bench: Bench, exported: Exported) -> None:
    """The engine gives the answers that were certified, on every row they were certified on.

    Those of an exact target are the torch module's, those of another its own engine's.

    Raises:
        GateError: more than one answer, and more than one in a thousand, is another.
    """
    rows, task = bench.certify_rows, bench.model.task
    with bench.ctx.progress.task(
        "checking the engine's answers", -(-len(rows) // BATCH)
    ) as step:
        found = predict(exported.engine.run, rows, task, step, **bench.mixing(exported.model))
    certified = bench.answers(exported.pipeline, exported.target)
    answers = sum(np.size(x) for x in found)
    other = round((1 - task.score(AGREEMENT, found, certified)) * answers)
    if other > max(1, OTHER_ANSWERS * answers):
        raise GateError(
            f"{other} of {answers} answers of the engine are not the certified ones, "
            f"{max(1, int(OTHER_ANSWERS * answers))} may differ\n"
            "this is a fault of prumux or of the engine; please report it"
        )


def _stage(shipped: Exported, staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed here
    staging.mkdir(parents=True)
    save_artifact(shipped.model, staging)
    for name in shipped.emitted.files:
        (staging / name).write_bytes((shipped.folder / name).read_bytes())
    (staging / "pipeline.txt").write_text(f"{shipped.pipeline}\n")
