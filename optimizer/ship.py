"""Exports dense and chosen side by side, times them, and ships what is not slower."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .artifact import save_artifact
from .ir import Model
from .pipeline import Pipeline
from .target import Emitted, Engine
from .timing import Speed, compare
from .trials import Bench
from .workspace import Workspace


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
    slower: str | None = None
    """The pipeline that was dropped because its engine was slower than the dense one."""


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
        with ctx.progress.task(f"exporting {pipeline}" if pipeline.passes else "exporting", 1):
            emitted.append(target.emit(models[-1], ctx, folder))
        engines.append(target.engine(folder, ctx.threads))
    speeds = compare(engines, ctx.workload, ctx.progress)
    dense, optimised = (
        Exported(pipeline, model, done, engine, speed, _size_bytes(folder, done.files))
        for pipeline, model, done, engine, speed, folder in zip(
            pipelines, models, emitted, engines, speeds, folders, strict=True
        )
    )
    shipped = Shipped(dense, optimised)
    if optimised.speed.throughput_ratio < 1:
        ctx.progress.say("the optimised engine is slower than the dense one and was dropped")
        shipped = Shipped(dense, dense, slower=str(chosen))
    _stage(shipped.optimised, folders[shipped.optimised is optimised], workspace.staging)
    return shipped


def _stage(shipped: Exported, folder: Path, staging: Path) -> None:
    staging.mkdir(parents=True, exist_ok=True)
    save_artifact(shipped.model, staging)
    for name in shipped.emitted.files:
        (staging / name).write_bytes((folder / name).read_bytes())
    (staging / "pipeline.txt").write_text(f"{shipped.pipeline}\n")


def _size_bytes(folder: Path, files: tuple[str, ...]) -> int:
    return sum((folder / name).stat().st_size for name in files)
