"""The plan of a run. All inputs are read and checked, and nothing is written."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Memory
from prumux.optimizer.certificate.provable import provable_loss, rows_needed
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.search.evaluator import Evaluator, no_record
from prumux.optimizer.search.presets import default_space, progressive_schedule
from prumux.optimizer.search.score_checks import check_scores, provable_by_class
from prumux.optimizer.workers.workers import Workers

from .inputs import open_evaluator
from .request import Request
from .workspace import check_out


@dataclass(frozen=True)
class Plan:
    """A request, with loaded inputs and the list of candidates."""

    request: Request
    evaluator: Evaluator
    space: tuple[Pipeline, ...]
    limit: float | None
    """The allowed loss in units of the metric; None = no budget."""
    warnings: tuple[str, ...] = ()
    """Warnings about unused inputs, and about metric, budget and rows."""
    known: Memory = field(default_factory=Memory)
    """Answers of the given model that the checks have computed."""

    def facts(self) -> dict[str, Any]:
        """Facts that must be the same in a resumed run and the interrupted one."""
        facts = self.evaluator.facts(self.space, self.request.budget)
        return {**facts, "labels": dict(self.request.labels)}

    def provable(self) -> str:
        """A line for the user about the losses that the certify rows can certify."""
        limit, unit = self.limit, self.evaluator.model.task.unit
        rows = self.evaluator.certify_rows.scored_rows
        if limit is None:
            return f"no budget: nothing is certified, scores are reported on {rows} {unit}"
        said = (
            f"{rows} {unit} to certify that {self.evaluator.metric} loses at most "
            f"{100 * limit:.2f} points"
        )
        if limit == 0:
            return f"{said}: exact passes only, nothing to certify"
        metric = self.evaluator.model.task.metric(self.evaluator.metric)
        if metric.statistic == "stratified":
            return f"{said}{provable_by_class(self.evaluator, limit)}"
        if metric.statistic != "paired" or not metric.needs_labels:
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
        """The plan as plain values, for `--dry-run`."""
        evaluator, request = self.evaluator, self.request
        more = {}
        if request.progressive and request.budget:
            points, limit_s = request.budget.limit(1.0), request.time_limit_s
            made = progressive_schedule(request.effort, points, limit_s, evaluator.model)
            mixes = [str(Pipeline(x.timed(x.minutes))) for x in made.mixes]
            more = {"on_top_of_the_last": [*mixes, "distill for the rest of the time"]}
        return {
            "model": str(evaluator.model.encoder),
            "task": evaluator.model.task.kind,
            "labels": len(evaluator.model.task.labels),
            "data": list(evaluator.notes),
            "metric": evaluator.metric,
            "budget": None if request.budget is None else str(request.budget),
            "limit": self.limit,
            "provable": self.provable(),
            "warnings": list(self.warnings),
            "candidates": [str(p) for p in self.space],
            **more,
            "target": str(evaluator.target),
            "serving": evaluator.serving.to_json(),
            "costs": None if evaluator.ctx.costs is None else evaluator.ctx.costs.describe(),
            "out": str(request.folder),
        }


def plan(request: Request, progress: Progress) -> Plan:
    """Read and check all inputs, with cheap checks first. Nothing is written.

    Raises:
        UsageError: an option, file or folder is wrong.
        MissingError: a library or device is missing.
    """
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
        pipeline.check_order()
        if len(pipeline.stages) > 1:
            target.check_stages()
    Workers.parse(request.workers).check()
    inputs = (request.model, request.data, request.train, request.validation, request.test)
    check_out(request.folder, (*inputs, request.costs), request.resume, request.force)
    evaluator, known = open_evaluator(request, target, progress), Memory()
    for pass_ in (x for pipeline in space for x in pipeline.passes):
        pass_.check_given(evaluator.model)
    watched = evaluator.with_store(known, no_record)
    warnings = check_scores(watched, request.budget, bool(request.labels))
    for warning in warnings:
        progress.say(f"warning: {warning}")
    limit = None
    if request.budget is not None:
        score = watched.dense_score("certify") if request.budget.relative else 1.0
        if score <= 0:
            raise UsageError(
                f"the given model scores {score:.4f}, so a relative budget means nothing\n"
                "give it in points: --budget 2%"
            )
        limit = request.budget.limit(score)
        if request.passes is None:
            points, limit_s = request.budget.limit(1.0), request.time_limit_s
            space = default_space(request.effort, points, limit_s, evaluator.model)
    return Plan(request, evaluator, space, limit, (*evaluator.warnings, *warnings), known)
