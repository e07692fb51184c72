"""The main job: a model, data and a budget in, an artifact folder out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Memory
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.search.budget import Budget
from prumux.optimizer.search.certificate import provable_loss, rows_needed
from prumux.optimizer.search.presets import (
    EFFORTS,
    EXACT,
    LIMIT_S,
    Effort,
    default_space,
    family,
)
from prumux.optimizer.workers.workers import IDLE, Workers

from .workspace import Workspace, check_out, finished, open_workspace

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.target import Target
    from prumux.optimizer.search.bisection import Found
    from prumux.optimizer.search.evaluator import Bench
    from prumux.optimizer.workers.speculation import Search

DEFAULT_BUDGET = "2%"
SHIPPING_S = 120.0
"""Kept free of the time limit for export and timing, or a fifth of it if that is less."""


@dataclass(frozen=True)
class Request:
    """The options of one run, as the user gave them."""

    model: str
    budget: Budget | None = None
    passes: str | None = None
    out: Path | None = None
    data: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """What values of the label column mean: the data's value to the model's class."""
    target: str = "onnx"
    metric: str | None = None
    batch: int = 32
    length: int | None = None
    device: str = "auto"
    seed: int = 0
    effort: Effort = "quick"
    time_limit_s: float | None = None
    workers: int | str = 1
    """Processes of this machine, or the address of a Ray cluster."""
    resume: bool = False
    force: bool = False
    command: str = ""

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("batch", 1), ("length", 1)):
            value = getattr(self, name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (name == "length" and value is None) and not (
                whole and least <= value < 2**63
            ):
                raise UsageError(f"{name} is {value!r}, give a whole number from {least}")
        for name in ("model", "passes", "data", "train", "validation", "test", "target"):
            value = getattr(self, name)
            optional = name not in ("model", "target")
            if not (optional and value is None) and not (isinstance(value, str) and value):
                raise UsageError(f"{name} is {value!r}, it must be a text that is not empty")
        if self.effort not in EFFORTS:
            raise UsageError(
                f"effort is {self.effort!r}, it must be one of {', '.join(EFFORTS)}"
            )
        Workers.parse(self.workers).check_device(self.device)
        limit = self.time_limit_s
        if limit is not None and not (isinstance(limit, int | float) and 0 < limit < math.inf):
            raise UsageError(f"time_limit_s is {limit!r}, give seconds, such as 1800")
        if not isinstance(self.columns, Mapping):
            raise UsageError(f"columns is {self.columns!r}, write {{'text_a': 'question'}}")
        if not isinstance(self.labels, Mapping):
            raise UsageError(f"labels is {self.labels!r}, write {{'0': 'positive'}}")

    @property
    def climbs(self) -> bool:
        """Whether the family of an effort that trains is searched."""
        return self.budget is not None and self.passes is None and self.effort != "quick"

    @property
    def folder(self) -> Path:
        """Where the result goes: `--out`, else `MODEL-prumux` in the current folder."""
        path = Path(self.model)
        if path.name in ("", ".."):  # such as `.`, the current folder
            path = path.resolve()
        name = path.stem if path.is_file() else path.name or "model"
        return self.out if self.out is not None else Path(f"{name}-prumux")


@dataclass(frozen=True)
class Plan:
    """What will be done, resolved and checked; nothing is written yet."""

    request: Request
    bench: Bench
    target: Target
    space: tuple[Pipeline, ...]
    limit: float | None
    warnings: tuple[str, ...] = ()
    """What was found about metric, budget and rows."""
    known: Memory = field(default_factory=Memory)
    """The given model's answers, as far as they were needed already."""

    def provable(self) -> str:
        """What the rows can and cannot prove, said before the search starts."""
        rows, limit = len(self.bench.certify_rows), self.limit
        if limit is None:
            return f"no budget: nothing is certified, scores are reported on {rows} rows"
        said = (
            f"{rows} rows to certify that {self.bench.metric} loses at most "
            f"{100 * limit:.2f} points"
        )
        if limit == 0:
            return f"{said}: exact passes only, nothing to certify"
        metric = self.bench.model.task.metric(self.bench.metric)
        if metric.statistic == "stratified":
            from prumux.optimizer.search.score_checks import provable_by_class

            return f"{said}{provable_by_class(self.bench, limit)}"
        if not (metric.counts_answers and metric.needs_labels):
            return said
        loss = provable_loss(rows, limit)
        if loss < 0:
            needed = rows_needed(limit)
            return (
                f"{said}: perhaps too few; if 5 % of the answers change, even a candidate "
                f"that loses nothing needs {needed}"
            )
        return f"{said}: enough for observed losses up to about {100 * loss:.2f} points"

    def describe(self) -> dict[str, Any]:
        """For `--dry-run`."""
        bench, request = self.bench, self.request
        more = {}
        if request.climbs and request.budget:
            points, limit_s = request.budget.limit(1.0), request.time_limit_s
            made = family(request.effort, points, limit_s, bench.model)
            mixes = [x.timed(x.minutes) for x in made.mixes]
            more = {"on_top_of_the_last": [*mixes, "distill for the rest of the time"]}
        return {
            "model": str(bench.model.encoder),
            "task": bench.model.task.kind,
            "labels": len(bench.model.task.labels),
            "data": list(bench.notes),
            "metric": bench.metric,
            "budget": None if request.budget is None else str(request.budget),
            "limit": self.limit,
            "provable": self.provable(),
            "warnings": list(self.warnings),
            "candidates": [str(p) for p in self.space],
            **more,
            "target": str(self.target),
            "serving": bench.serving(),
            "out": str(request.folder),
        }


@dataclass(frozen=True)
class Result:
    """What a run ended with."""

    folder: Path
    report: Mapping[str, Any]

    @property
    def met(self) -> bool:
        """Whether a candidate was certified within the budget, or no budget was given."""
        return bool(self.report["met"])

    @property
    def pipeline(self) -> str:
        """The pipeline text of what was shipped."""
        return str(self.report["pipeline"])


def optimize(
    model: str | Path,
    budget: float | str | None = None,
    *,
    progress: Progress | bool = False,
    **options: Any,
) -> Result:
    """Make the fastest engine of `model` that loses at most `budget`.

    Args:
        model: an artifact folder, a Hugging Face folder or hub id, or a `model.pt`.
        budget: a share (0.02 = 2 percentage points) or a text such as `2%` or `2%rel`; None
            is 2 points, or with `passes` no budget: exactly that pipeline is run.
        progress: True shows progress on stderr.
        options: fields of `Request`: `data`, `train`, `validation`, `test`, `columns`,
            `labels`, `out`, `passes`, `target`, `metric`, `batch`, `length`, `device`,
            `effort`, `time_limit_s`, `seed`, `workers`, `resume`, `force`.

    Raises:
        PrumuxError: with the exit code that the command line would give. A budget that no
            candidate meets is no error: see `Result.met`.
    """
    if budget is None and options.get("passes") is None:
        budget = DEFAULT_BUDGET
    if isinstance(budget, str):
        share: Budget | None = Budget.parse(budget)
    elif budget is None or isinstance(budget, float | int):
        share = None if budget is None else Budget(float(budget))
    else:
        raise UsageError(f"budget is {budget!r}; write 0.02 or '2%'")
    known = set(Request.__dataclass_fields__)
    for name in options.keys() - known:
        raise UsageError(
            f"optimize() has no option '{name}'; it takes {', '.join(sorted(known))}"
        )
    for name, make in (("out", Path), ("data", str), ("train", str), ("test", str)):
        if isinstance(options.get(name), str | Path):
            options[name] = make(options[name])
    if isinstance(options.get("validation"), Path):
        options["validation"] = str(options["validation"])
    if isinstance(options.get("labels"), Mapping):
        options["labels"] = {str(k): str(v) for k, v in options["labels"].items()}
    request = Request(model=str(model), budget=share, **options)
    shown = Progress(1) if progress is True else progress or Progress()
    return run(request, shown)


def plan(request: Request, progress: Progress) -> Plan:
    """Read and check everything; cheap checks first, so that a typing error costs no time."""
    target = parse_target(request.target)
    if request.passes is None and request.budget is None:
        raise UsageError("nothing to do: give --budget 2% or --passes TEXT")
    space: tuple[Pipeline, ...] = ()
    if request.budget is None:
        space = (Pipeline.parse(request.passes or ""),)
    elif request.passes is not None:
        space = Pipeline.space(request.passes)
    for pipeline in space:
        if pipeline.uncut:
            raise UsageError(
                f"'{pipeline}' marks what to prune and does not cut it out\n"
                f"add slice after it: --passes '{pipeline},slice'"
            )
    Workers.parse(request.workers).check()
    inputs = (request.model, request.data, request.train, request.validation, request.test)
    check_out(request.folder, inputs, request.resume, request.force)
    from prumux.optimizer.search.evaluator import nowhere
    from prumux.optimizer.search.score_checks import before

    from .inputs import open_bench

    bench = open_bench(request, target, progress)
    known = Memory()
    watched = bench.with_store(known, nowhere)
    warnings = before(watched)
    limit = None
    if request.budget is not None:
        # The score is only needed, and only then worth its time, for a relative budget.
        score = watched.dense_score("certify") if request.budget.relative else 1.0
        if score <= 0:
            raise UsageError(
                f"the given model scores {score:.4f}, so a relative budget means nothing\n"
                "give it in points: --budget 2%"
            )
        limit = request.budget.limit(score)
        if request.passes is None:
            points, limit_s = request.budget.limit(1.0), request.time_limit_s
            space = default_space(request.effort, points, limit_s, bench.model)
    return Plan(bench.request, bench, target, space, limit, warnings, known)


def run(request: Request, progress: Progress) -> Result:
    """Do the job and write the artifact folder.

    Raises:
        PrumuxError: nothing was finished; what was done so far can be resumed.
    """
    started = time.monotonic()
    todo = plan(request, progress)
    for warning in todo.warnings:
        progress.say(f"warning: {warning}")
    progress.say(todo.provable())
    facts = todo.bench.facts(todo.space)
    workspace = open_workspace(request.folder, facts, request.resume, request.force)
    if workspace is None:
        progress.say(f"'{request.folder}' holds the finished result of this very run")
        return Result(request.folder, finished(request.folder) or {})
    try:
        todo.known.give(workspace.store)
        bench = todo.bench.with_store(workspace.store, workspace.record)
        return _work(replace(todo, bench=bench), workspace, started)
    finally:
        workspace.release()


def _work(todo: Plan, workspace: Workspace, started: float) -> Result:
    """Choose, ship and report."""
    import torch

    from prumux.optimizer.report.build import build_report, write_report
    from prumux.optimizer.search.precision_choice import lowered, unlowered
    from prumux.optimizer.search.shape_timing import predicted
    from prumux.optimizer.workers.scheduler import trial_threads

    from .packaging import ship

    workers = _of_use(todo)
    torch.set_num_threads(trial_threads(todo.bench, workers))
    bench = unlowered(todo.bench) if todo.limit == 0 else lowered(todo.bench, todo.limit)
    todo = replace(todo, bench=bench)
    found, chosen = _choose(todo, started, workers)
    if found is not None and found.trials and not found.proofs and len(bench.targets) > 1:
        # Nobody kept the limit in the lower precision; no certify row has been asked yet.
        bench.ctx.progress.say(f"no candidate keeps it there: searching {bench.targets[-1]}")
        todo = replace(todo, bench=replace(bench, targets=bench.targets[-1:]))
        found, chosen = _choose(todo, started, workers)
    if found is not None:
        found = replace(found, trials=predicted(todo.bench, found.trials))
        if found.winner is None:
            todo = replace(todo, bench=unlowered(todo.bench))
    shipped = ship(todo.bench, chosen, workspace)
    report = build_report(
        todo.bench,
        found,
        shipped,
        budget=None if todo.request.budget is None else str(todo.request.budget),
        limit=todo.limit,
        serving=todo.bench.serving(),
        facts=todo.bench.facts(todo.space),
        command=todo.request.command,
        seconds=time.monotonic() - started,
        warnings=todo.warnings,
    )
    for warning in report.warnings[len(todo.warnings) :]:
        bench.ctx.progress.say(f"warning: {warning}")
    written = write_report(report, workspace.staging)
    workspace.publish()
    return Result(todo.request.folder, written)


def _of_use(todo: Plan) -> Workers:
    """The workers, where there is something to build side by side; else it says why not."""
    request, workers = todo.request, Workers.parse(todo.request.workers)
    if todo.limit is None or len(todo.space) == 1:
        idle = "there is one pipeline to run"
    elif todo.limit == 0:
        idle = "nothing may be lost and so nothing is searched"
    elif request.climbs:
        idle = f"--effort {request.effort} trains one candidate after another"
    else:
        return workers
    if not workers.here_only:
        todo.bench.ctx.progress.say(IDLE.format(what=idle))
    return Workers()


def _choose(todo: Plan, started: float, workers: Workers) -> tuple[Found | None, Pipeline]:
    """Search if there is a budget, else take the one pipeline that was given."""
    bench, request = todo.bench, todo.request
    if todo.limit is None:
        return None, todo.space[0]
    from prumux.optimizer.search.bisection import Found
    from prumux.optimizer.search.progressive_run import climbed
    from prumux.optimizer.workers.scheduler import searched

    exact = Pipeline.parse(EXACT)
    if todo.limit == 0:
        return Found((), (), exact, None, "nothing may be lost: exact passes only"), exact

    allowed = request.time_limit_s or LIMIT_S.get(request.effort, math.inf)

    def left_s() -> float:
        return started + max(0.8 * allowed, allowed - SHIPPING_S) - time.monotonic()

    limit = todo.limit
    if request.climbs:
        found = climbed(todo, limit, left_s)
    else:

        def late(pipeline: Pipeline) -> bool:
            return bench.training_s(pipeline) > left_s()

        found = searched(_free_search(todo, limit), bench, limit, late, workers)
    return found, found.winner or exact


def _free_search(todo: Plan, limit: float) -> Search:
    """The search of a space of separate candidates; what it has to time is timed here."""
    from prumux.optimizer.search.acquisition import explore
    from prumux.optimizer.search.bisection import find, safe_loss
    from prumux.optimizer.search.shape_timing import candidates, fitter, mixes

    bench = todo.bench
    safe = safe_loss(len(bench.certify_rows), limit)
    if mixes(todo.space):
        known, fitted = candidates(bench, todo.space), fitter(bench)
        return lambda trial, prove, late: explore(
            known, trial, prove, limit, late, fitted=fitted, safe=safe
        )
    lowered = todo.request.passes is None and not bench.targets[0].exact
    # A lower precision by itself is a candidate too.
    order = bench.order((Pipeline.parse(EXACT), *todo.space) if lowered else todo.space)
    return lambda trial, prove, late: find(order, trial, prove, limit, late, safe=safe)
