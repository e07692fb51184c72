"""Packaging: export the given and the chosen model, time them, and stage the faster one."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from prumux.optimizer.base.errors import GateError, MissingError, PrumuxError
from prumux.optimizer.base.memory import release_memory
from prumux.optimizer.data.predict import BATCH, predict, workload
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.pipeline.own_rows import own_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Emitted, Engine, Target
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.timing.own_batches import SIZES, time_own_batches
from prumux.optimizer.timing.serving_point import UNTIMED, Speed, compare

from .workspace import Workspace

GRAPH, HUB_FOLDER = ("model.onnx", "model.onnx_data"), "onnx"
"""Files of the graph with its weights, and the folder in which transformers.js, optimum and
sentence-transformers look for them."""
OTHER_ANSWERS = 0.001
"""Share of answers that may differ from the certified ones. One answer may always differ."""


@dataclass(frozen=True, eq=False)
class ExportedModel:
    """A model that is exported to a target, with its loaded engine and timings."""

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
    """Engines that were timed in the same rounds. The artifact folder contains `optimised`."""

    dense: ExportedModel
    optimised: ExportedModel
    dropped: ExportedModel | None = None
    """The chosen model, if its engine was slower than the given model's."""
    beside: tuple[ExportedModel, ...] = ()
    """Other engines: the given and the chosen model in other precisions."""


def package(evaluator: Evaluator, chosen: Pipeline, workspace: Workspace) -> PackagedEngines:
    """Export and time engines, and stage the files of the artifact folder.

    The given model is timed in full precision and on the inexact targets, the chosen model on
    all targets. The chosen model's engine on the first target, which was certified, is
    packaged. If this engine is slower than the given model's engine, the given model's is
    packaged instead.
    """
    ctx, dense = evaluator.ctx, Pipeline(())
    first, *lossless = evaluator.target.baseline().layouts()
    wanted = [(dense, first)]
    if ctx.arrivals == "mixed":
        wanted += [(dense, target) for target in lossless]
    wanted += [(dense, target) for target in evaluator.targets if not target.exact]
    wanted += [(chosen, target) for target in evaluator.targets]
    best_at = len(wanted) - len(evaluator.targets)
    folders = [workspace.engines / str(i) for i in range(len(wanted))]
    # The chosen model is exported first: its files must remain if the engine's builder is
    # missing.
    best = _export_kept(evaluator, *wanted[best_at], folders[best_at])
    exported = [
        best if i == best_at else _export(evaluator, *which, folders[i])
        for i, which in enumerate(wanted)
    ]
    given, *others = _timed(evaluator, exported)
    if _slower(evaluator, given, others[best_at - 1]) and ctx.costs is None:
        given, *others = _timed(evaluator, exported)  # noise of a busy machine seldom repeats
    best = others.pop(best_at - 1)
    packaged = PackagedEngines(given, best, beside=tuple(others))
    if _slower(evaluator, given, best):
        where = "" if ctx.costs is None else f" on {ctx.costs.name}"
        ctx.progress.say(
            f"the optimised engine is slower than the dense one{where} and was dropped"
        )
        packaged = PackagedEngines(given, given, dropped=best, beside=tuple(others))
    packaged = _at_own_batches(evaluator, packaged)
    best = packaged.optimised
    _check_answers(evaluator, best)
    _stage(best, workspace.staging)
    own = evaluator.predictor.context_of(best.model)
    best.target.bundle(best.model, own, workspace.staging)
    return packaged


def _export_kept(
    evaluator: Evaluator, pipeline: Pipeline, target: Target, folder: Path
) -> ExportedModel:
    """Export the chosen model. The error about a missing builder names the remedy."""
    try:
        return _export(evaluator, pipeline, target, folder)
    except MissingError as error:
        raise MissingError(
            f"{error}\nthe search is finished and kept: repeat the command with --resume there"
        ) from error


def _export(
    evaluator: Evaluator, pipeline: Pipeline, target: Target, folder: Path
) -> ExportedModel:
    """Export a model and load its engine, without timing."""
    model = evaluator.builder.build(pipeline)
    name = str(pipeline) if pipeline.passes else "dense"
    with evaluator.ctx.progress.task(f"exporting {name} to {target}", 1):
        emitted = target.emit(model, evaluator.predictor.context_of(model), folder)
    release_memory()
    engine = target.engine(folder, evaluator.ctx.threads)
    size = sum((folder / name).stat().st_size for name in emitted.files)
    return ExportedModel(pipeline, target, model, emitted, engine, folder, size)


def _timed(evaluator: Evaluator, exported: Sequence[ExportedModel]) -> list[ExportedModel]:
    """Time all engines in the same rounds."""
    ctx, context_of = evaluator.ctx, evaluator.predictor.context_of
    timed = [(x.engine, context_of(x.model).workload) for x in exported]
    speeds = compare(timed, ctx.progress, ctx.cores)
    return [replace(x, speed=speed) for x, speed in zip(exported, speeds, strict=True)]


def _at_own_batches(evaluator: Evaluator, packaged: PackagedEngines) -> PackagedEngines:
    """Time the given model's and the shipped engine, each at its own best batch size.

    GPU engines are skipped, because they are built for the batches of the serving point.
    """
    dense, best, ctx = packaged.dense, packaged.optimised, evaluator.ctx
    described = [x.engine.describe() for x in (dense, best)]
    on_cpu = all(x.get("device") == "cpu" and "instead_of" not in x for x in described)
    if best is dense or not on_cpu:
        return packaged
    certify, length = evaluator.certify_rows, evaluator.serving.length
    sizes = sorted({batch_rows(n, best.model.encoder.slots) for n in SIZES})
    sizes = [n for n in sizes if n <= len(certify)]
    if len(sizes) < 2:  # too few rows to choose
        return packaged
    rows = [own_rows(certify, x.model) for x in (dense, best)]
    one, two = ({n: workload(x, n, length, ctx.arrivals) for n in sizes} for x in rows)
    first, second = time_own_batches(
        (dense.engine, one), (best.engine, two), ctx.progress, ctx.cores
    )
    return replace(
        packaged,
        dense=replace(dense, speed=replace(dense.speed, own_batch=first)),
        optimised=replace(best, speed=replace(best.speed, own_batch=second)),
    )


def _slower(evaluator: Evaluator, dense: ExportedModel, other: ExportedModel) -> bool:
    """True if an engine is slower than the given model's, by median and by best round.

    Two conditions are needed, so that noise does not decide. If a costs file has an estimate,
    the estimate decides. For a model with a smaller vocabulary the result is False, because
    its purpose is a smaller file.
    """
    if other.model.kept_pieces is not None:
        return False
    if evaluator.ctx.costs is not None:
        with suppress(PrumuxError):  # this target or mixing was not measured
            return (
                evaluator.ctx.costs.estimate_model(
                    other.model,
                    dense.model.encoder,
                    other.target.timed_as,
                    dense.target.timed_as,
                ).speedup
                < 1
            )
    best = other.speed.rows_per_second_high < dense.speed.rows_per_second_high
    return other.speed.throughput_ratio < 1 and best


def _check_answers(evaluator: Evaluator, exported: ExportedModel) -> None:
    """Check that the engine gives the certified answers on all certify rows.

    For an exact target, the torch module gave the certified answers. For other targets, the
    engine gave them.

    Raises:
        GateError: more than one answer differs, and more than one in a thousand answers.
    """
    rows, task = own_rows(evaluator.certify_rows, exported.model), evaluator.model.task
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
    shutil.rmtree(staging, ignore_errors=True)  # a killed run may have left it
    staging.mkdir(parents=True)
    save_artifact(packaged.model, staging)
    for name in packaged.emitted.files:
        (staging / name).parent.mkdir(exist_ok=True)  # a stage of a cascade
        (staging / name).write_bytes((packaged.folder / name).read_bytes())
    for name in GRAPH:
        if (staging / name).exists():
            _share(staging / name, staging / HUB_FOLDER / name)
    (staging / "pipeline.txt").write_text(f"{packaged.pipeline}\n", encoding="utf-8")


def _share(file: Path, second: Path) -> None:
    """Link a second name to a file, or copy it if the file system has no links."""
    second.parent.mkdir(exist_ok=True)
    try:
        second.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, second)
