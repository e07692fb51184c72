"""Exports dense and chosen side by side, times them, and ships what is not slower."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from .artifact import save_artifact
from .errors import GateError
from .evaluate import BATCH, predict
from .ir import Model
from .metrics import score
from .pipeline import Pipeline
from .target import Emitted, Engine
from .timing import Speed, compare
from .trials import Bench
from .workspace import Workspace

SAME_ANSWERS = 0.999


@dataclass(frozen=True, eq=False)
class Exported:
    """One model on the target."""

    pipeline: Pipeline
    model: Model
    emitted: Emitted
    engine: Engine
    speed: Speed
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Shipped:
    """What was measured together; `optimised` is what the artifact folder holds."""

    dense: Exported
    optimised: Exported
    dropped: Exported | None = None
    """What was chosen, where its engine turned out slower than the dense one."""


def ship(bench: Bench, chosen: Pipeline, workspace: Workspace) -> Shipped:
    """Export, time interleaved, and stage the artifact folder's files.

    The never-slower gate: a chosen engine that is slower than the dense one is dropped.
    """
    ctx, target = bench.ctx, bench.target
    pipelines = (Pipeline(()), chosen)
    folders = [workspace.engines / name for name in ("dense", "optimised")]
    models, emitted, engines = [], [], []
    for pipeline, folder in zip(pipelines, folders, strict=True):
        models.append(bench.build(pipeline))
        with ctx.progress.task(
            f"exporting {pipeline}" if pipeline.passes else "exporting dense", 1
        ):
            emitted.append(target.emit(models[-1], ctx, folder))
        engines.append(target.engine(folder, ctx.threads))
    speeds = compare(engines, ctx.workload, ctx.progress)
    if _slower(*speeds):  # a busy machine may say so once, but hardly twice
        speeds = compare(engines, ctx.workload, ctx.progress)
    dense, optimised = (
        Exported(pipeline, model, done, engine, speed, _size_bytes(folder, done.files))
        for pipeline, model, done, engine, speed, folder in zip(
            pipelines, models, emitted, engines, speeds, folders, strict=True
        )
    )
    for exported in (dense, optimised):
        _check_answers(bench, exported)
    shipped = Shipped(dense, optimised)
    if _slower(dense.speed, optimised.speed):
        ctx.progress.say("the optimised engine is slower than the dense one and was dropped")
        shipped = Shipped(dense, dense, dropped=optimised)
    _stage(shipped.optimised, folders[shipped.optimised is optimised], workspace.staging)
    return shipped


def _slower(dense: Speed, other: Speed) -> bool:
    """Slower in the median round and in the best one, so that noise alone does not decide."""
    best = other.rows_per_second_high < dense.rows_per_second_high
    return other.throughput_ratio < 1 and best


def _check_answers(bench: Bench, exported: Exported) -> None:
    """The engine gives the answers that were certified, on every row they were certified on.

    Raises:
        GateError: more than one row in a thousand has another answer.
    """
    rows, task = bench.certify_rows, bench.model.task
    with bench.ctx.progress.task(
        "checking the engine's answers", -(-len(rows) // BATCH)
    ) as step:
        found = predict(exported.engine.run, rows, task, step, **bench.mixing(exported.model))
    share = score("agreement", found, bench.answers(exported.pipeline), task)
    if share < SAME_ANSWERS:
        raise GateError(
            f"engine and torch module agree on {share:.2%} of {len(rows)} rows, "
            f"{SAME_ANSWERS:.1%} are needed\n"
            "this is a fault of prumux or of the engine; please report it"
        )


def _stage(shipped: Exported, folder: Path, staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # of a run that was killed here
    staging.mkdir(parents=True)
    save_artifact(shipped.model, staging)
    for name in shipped.emitted.files:
        (staging / name).write_bytes((folder / name).read_bytes())
    (staging / "pipeline.txt").write_text(f"{shipped.pipeline}\n")


def _size_bytes(folder: Path, files: tuple[str, ...]) -> int:
    return sum((folder / name).stat().st_size for name in files)
