"""Throughput of candidates before they are trained: it depends on sizes alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prumux.optimizer.base.errors import PassError, PrumuxError
from prumux.optimizer.base.store import key
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.timing.interleave import interleave, ratio

from .accuracy_model import Fit, Shape, fit, shape_of
from .acquisition import Candidate
from .bisection import Trial
from .evaluator import Bench

ROUNDS = 5
AT_ONCE = 8
"""Engines that are in memory together."""


def candidates(bench: Bench, space: Sequence[Pipeline]) -> list[Candidate]:
    """What can be known of a space without training; who cannot be made is left out.

    Each is exported untrained and timed in turn with the dense engine, some at a time. What
    was measured is kept, so that a resumed run goes on with it.
    """
    unique = {_name(bench, x): x for x in space}
    todo = [name for name in unique if not bench.ctx.store.has(name)]
    made: dict[str, dict[str, Any]] = {}
    if todo:
        with bench.ctx.progress.task("timing shapes", len(todo)) as step:
            for names in (todo[i : i + AT_ONCE] for i in range(0, len(todo), AT_ONCE)):
                measured = _measured(bench, [unique[x] for x in names], step)
                for name, facts in zip(names, measured, strict=True):
                    made[name] = bench.ctx.store.json(name, partial(dict, facts))
    found = []
    for name, pipeline in unique.items():
        facts = made.get(name) or bench.ctx.store.json(name, dict)
        if error := facts.get("error"):
            where = str(bench.targets[0])
            bench.record({"pipeline": str(pipeline), "target": where, "error": error})
            continue
        found.append(Candidate(pipeline, Shape(**facts["shape"]), facts["throughput"]))
    if not found:
        raise PassError(f"no candidate can be made; the last: {error}", exit_code=2)
    return found


def predicted(bench: Bench, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Trials with the throughput that their shapes have."""
    known: dict[Pipeline, Candidate] = {}
    if trials:
        with suppress(PrumuxError, OSError):  # the search is done without
            known = {x.pipeline: x for x in candidates(bench, [x.pipeline for x in trials])}
    return tuple(
        replace(x, predicted_ratio=known[x.pipeline].throughput) if x.pipeline in known else x
        for x in trials
    )


def fitter(bench: Bench) -> Fit:
    """What learns from trials on this bench what candidates lose."""
    lost = bench.dense_score("select") - bench.model.task.chance(bench.metric)
    return partial(fit, rows=len(bench.select_rows), ceiling=lost if lost > 0 else 1.0)


def mixes(space: Sequence[Pipeline]) -> bool:
    """Whether candidates differ in how rows are mixed, not just in how far they are cut."""
    return len({tuple(str(p) for p in x.passes if p.name == "mux") for x in space}) > 1


def _name(bench: Bench, pipeline: Pipeline) -> str:
    return f"shape-{key(pipeline, bench.targets[0])}"


def _measured(
    bench: Bench, space: Sequence[Pipeline], step: Callable[[], object]
) -> list[dict[str, Any]]:
    """Shape and throughput over the dense model's on the baseline target, or an error."""
    ctx, inputs = bench.ctx, [b.inputs() for b in bench.ctx.workload]
    dense = count(replace(bench.model.encoder, mux=None), ctx.length).macs
    facts: list[dict[str, Any]] = []
    runs: list[Callable[[], object]] = []
    with ExitStack() as stack:

        def add(model: Model, target: Target) -> None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            target.draft().emit(model, ctx, folder)
            engine = target.engine(folder, ctx.threads)
            runs.append(lambda: [engine.run(x) for x in inputs])

        add(bench.model, bench.target.baseline())
        for pipeline in space:
            try:
                model = bench.untrained(pipeline)
            except PassError as error:
                facts.append({"error": str(error)})
            else:
                apart = count(replace(model.encoder, mux=None), ctx.length).macs
                facts.append({"shape": asdict(shape_of(model.encoder, apart, dense))})
                add(model, bench.targets[0])
            step()
        first, *others = interleave(runs, ROUNDS, repeat=True)
    made = (x for x in facts if "shape" in x)
    for entry, timing in zip(made, others, strict=True):
        entry["throughput"] = ratio(first, timing).median_ms
    return facts
