"""Packaging: exports dense and chosen model, times them, and stages the faster one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from prumux.optimizer.base.errors import GateError, MissingError
from prumux.optimizer.data.predict import BATCH, predict
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Emitted, Engine, Target
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.timing.serving_point import UNTIMED, Speed, compare

from .workspace import Workspace

OTHER_ANSWERS = 0.001
"""Share of answers that may differ from the certified ones; one may in any case."""


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """A model exported to a target, loaded and timed."""

    pipeline: Pipeline
    target: Target
    model: Model
    emitted: Emitted
    engine: Engine
    folder: Path
    size_bytes: int
    speed: Speed = field(default=UNTIMED)


@dataclass(frozen=True, eq=False)
class PackagedEngines:
    """Engines that were timed in the same rounds; the artifact folder holds `optimised`."""

    dense: ExportedModel
    optimised: ExportedModel
    dropped: ExportedModel | None = None
    """The chosen model, if its engine was slower than the dense one."""
    beside: tuple[ExportedModel, ...] = ()
    """Other engines: the dense and the chosen model in other precisions."""


def package(evaluator: Evaluator, chosen: Pipeline, workspace: Workspace) -> PackagedEngines:
    """Export, time in interleaved rounds, and stage the files of the artifact folder.

    The given model runs on the baseline target and on the inexact targets, the chosen one on
    all targets. Its engine on the first target, the certified one, is packaged. If that is
    slower than the given model's, the given model's engine is packaged instead.
    """
    ctx, dense = evaluator.ctx, Pipeline(())
    wanted = [(dense, evaluator.target.baseline())]
    wanted += [(dense, target) for target in evaluator.targets if not target.exact]
    wanted += [(chosen, target) for target in evaluator.targets]
    best_at = len(wanted) - len(evaluator.targets)
    folders = [workspace.engines / str(i) for i in range(len(wanted))]
    # Where the engine's builder is missing, the chosen model's files are those that are left.
    best = _export_kept(evaluator, *wanted[best_at], folders[best_at])
    exported = [
        best if i == best_at else _export(evaluator, *which, folders[i])
        for i, which in enumerate(wanted)
    ]
    first, *others = _timed(evaluator, exported)
    if _slower(first.speed, others[best_at - 1].speed):
        first, *others = _timed(
            evaluator, exported
        )  # noise of a busy machine is unlikely to repeat
    best = others.pop(best_at - 1)
    packaged = PackagedEngines(first, best, beside=tuple(others))
    if _slower(first.speed, best.speed):
        ctx.progress.say("the optimised engine is slower than the dense one and was dropped")
        packaged = PackagedEngines(first, first, dropped=best, beside=tuple(others))
    best = packaged.optimised
    _check_answers(evaluator, best)
    _stage(best, workspace.staging)
    best.target.bundle(best.model, ctx, workspace.staging)
    return packaged


def _export_kept(
    evaluator: Evaluator, pipeline: Pipeline, target: Target, folder: Path
) -> ExportedModel:
    """Export the chosen model; says how to go on where the engine's builder is missing."""
    try:
        return _export(evaluator, pipeline, target, folder)
    except MissingError as error:
        raise MissingError(
            f"{error}\nthe search is finished and kept: repeat the command with --resume there"
        ) from error


def _export(
    evaluator: Evaluator, pipeline: Pipeline, target: Target, folder: Path
) -> ExportedModel:
    """Export a model and load its engine; not timed yet."""
    model = evaluator.builder.build(pipeline)
    name = str(pipeline) if pipeline.passes else "dense"
    with evaluator.ctx.progress.task(f"exporting {name} to {target}", 1):
        emitted = target.emit(model, evaluator.ctx, folder)
    engine = target.engine(folder, evaluator.ctx.threads)
    size = sum((folder / name).stat().st_size for name in emitted.files)
    return ExportedModel(pipeline, target, model, emitted, engine, folder, size)


def _timed(evaluator: Evaluator, exported: Sequence[ExportedModel]) -> list[ExportedModel]:
    """Time all engines in the same rounds."""
    ctx = evaluator.ctx
    engines = [x.engine for x in exported]
    speeds = compare(engines, ctx.workload, ctx.progress, ctx.cores)
    return [replace(x, speed=speed) for x, speed in zip(exported, speeds, strict=True)]


def _slower(dense: Speed, other: Speed) -> bool:
    """True if slower in the median round and in the best one; noise does not decide."""
    best = other.rows_per_second_high < dense.rows_per_second_high
    return other.throughput_ratio < 1 and best


def _check_answers(evaluator: Evaluator, exported: ExportedModel) -> None:
    """Check that the engine gives the certified answers on all certify rows.

    For an exact target these are the torch module's answers, else its own engine's.

    Raises:
        GateError: more than one answer, and more than one in a thousand, differs.
    """
    rows, task = evaluator.certify_rows, evaluator.model.task
    with evaluator.ctx.progress.task(
        "checking the engine's answers", -(-len(rows) // BATCH)
    ) as step:
        found = predict(
            exported.engine.run, rows, task, step, **evaluator.predictor.mixing(exported.model)
        )
    certified = evaluator.predictor.predict(exported.pipeline, "certify", exported.target)
    other, answers = task.other_answers(found, certified)
    if other > max(1, OTHER_ANSWERS * answers):
        raise GateError(
            f"{other} of {answers} answers of the engine are not the certified ones, "
            f"{max(1, int(OTHER_ANSWERS * answers))} may differ\n"
            "this is a fault of prumux or of the engine; please report it"
        )


def _stage(packaged: ExportedModel, staging: Path) -> None:
    shutil.rmtree(staging, ignore_errors=True)  # left by a run that was killed here
    staging.mkdir(parents=True)
    save_artifact(packaged.model, staging)
    for name in packaged.emitted.files:
        (staging / name).write_bytes((packaged.folder / name).read_bytes())
    (staging / "pipeline.txt").write_text(f"{packaged.pipeline}\n", encoding="utf-8")
