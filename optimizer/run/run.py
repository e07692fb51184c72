"""A run: turns a model, data and a budget into an artifact folder."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.certificate.kept_answers import write_answers
from prumux.optimizer.report.build import build_report, write_report
from prumux.optimizer.report.model_card import write_model_card
from prumux.optimizer.search.precision_choice import choose_precision, exact_only
from prumux.optimizer.workers.scheduler import trial_threads

from .choose import choose, useful_workers
from .packaging import package
from .plan import Plan, plan
from .recording import recorded
from .request import Request
from .workspace import Workspace, finished, open_workspace

DEFAULT_BUDGET = "2%"


@dataclass(frozen=True)
class Result:
    """The outcome of a run."""

    folder: Path
    report: Mapping[str, Any]

    @property
    def met(self) -> bool:
        """True if a candidate was certified within the budget, or if there was no budget."""
        return bool(self.report["met"])

    @property
    def pipeline(self) -> str:
        """Text of the pipeline that made the packaged model."""
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
        budget: a share (0.02 = 2 percentage points) or a text such as `2%` or `2%rel`. None =
            2 points. With `passes`, None = no budget, and exactly this pipeline runs.
        progress: True shows progress on stderr.
        options: fields of `Request`: `data`, `train`, `validation`, `test`, `columns`,
            `labels`, `certify_on_train`, `out`, `passes`, `target`, `metric`, `batch`,
            `length`, `arrivals`, `costs`, `device`, `effort`, `time_limit_s`, `seed`,
            `workers`, `resume`, `force`, `keep_answers`.

    Raises:
        PrumuxError: the run failed; `exit_code` is the same as on the command line. If no
            candidate meets the budget, there is no error: see `Result.met`.
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
    for name in ("validation", "costs"):
        if isinstance(options.get(name), Path):
            options[name] = str(options[name])
    if isinstance(options.get("labels"), Mapping):
        options["labels"] = {str(k): str(v) for k, v in options["labels"].items()}
    request = Request(model=str(model), budget=share, **options)
    shown = Progress(1) if progress is True else progress or Progress()
    return run(request, shown)


def run(request: Request, progress: Progress) -> Result:
    """Do all steps of a request and write the artifact folder.

    Raises:
        PrumuxError: the run did not finish; its finished steps can be resumed.
    """
    started = time.monotonic()
    todo = plan(request, progress)
    progress.say(todo.provable())
    workspace = open_workspace(request.folder, todo.facts(), request.resume, request.force)
    if workspace is None:
        progress.say(f"'{request.folder}' holds the finished result of this very run")
        return Result(request.folder, finished(request.folder) or {})
    try:
        todo.known.give(workspace.store)
        evaluator = todo.evaluator.with_store(workspace.store, workspace.record)
        return _work(replace(todo, evaluator=evaluator), workspace, started)
    finally:
        workspace.release()


def _work(todo: Plan, workspace: Workspace, started: float) -> Result:
    """Choose the pipeline, package it, and write the report."""
    import torch

    workers = useful_workers(todo)
    torch.set_num_threads(trial_threads(todo.evaluator, workers))
    given = todo.evaluator
    evaluator = (
        exact_only(given)
        if todo.limit == 0
        else choose_precision(given, todo.limit, todo.space)
    )
    todo, found, chosen = choose(replace(todo, evaluator=evaluator), started, workers)
    workspace.mark_searched()
    engines = package(todo.evaluator, chosen, workspace)
    budget = todo.request.budget
    report = build_report(
        todo.evaluator,
        found,
        engines,
        budget=None if budget is None else str(budget),
        limit=todo.limit,
        serving=todo.evaluator.serving.to_json(),
        facts=todo.facts(),
        command=todo.request.command,
        seconds=time.monotonic() - started,
        warnings=todo.warnings,
    )
    for warning in report.warnings[len(todo.warnings) :]:
        todo.evaluator.ctx.progress.say(f"warning: {warning}")
    if todo.request.keep_answers:
        kept = recorded(todo.evaluator, engines.optimised, report, workspace)
        if kept is not None:
            write_answers(kept, workspace.staging)
    write_model_card(report, workspace.staging)
    written = write_report(report, workspace.staging)
    workspace.publish()
    return Result(todo.request.folder, written)
