"""Throughput of candidates before they are trained: it depends on sizes alone."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .cost import count
from .errors import PassError
from .explore import Candidate
from .ir import Model
from .measure import interleave, ratio
from .pipeline import Pipeline
from .store import key
from .surrogate import Fit, Shape, fit, shape_of
from .trials import Bench

ROUNDS = 5


def candidates(bench: Bench, space: Sequence[Pipeline]) -> list[Candidate]:
    """What can be known of a space without training.

    Each is exported untrained and timed in turn with the dense engine. What was measured is
    kept, so that a resumed run goes on with it.
    """
    dense = count(bench.model.encoder, bench.ctx.length).macs
    found = []
    with bench.ctx.progress.task("timing shapes", len(space)) as step:
        for pipeline in space:
            facts = bench.ctx.store.json(
                f"shape-{key(pipeline, bench.targets[0])}",
                partial(_facts, bench, pipeline, dense),
            )
            step()
            if error := facts.get("error"):
                where = str(bench.targets[0])
                bench.record({"pipeline": str(pipeline), "target": where, "error": error})
                continue
            found.append(Candidate(pipeline, Shape(**facts["shape"]), facts["throughput"]))
    if not found:
        raise PassError(f"no candidate can be made; the last: {error}", exit_code=2)
    return found


def fitter(bench: Bench) -> Fit:
    """What learns from trials on this bench what candidates lose."""
    classes = len(bench.model.task.labels) if bench.metric in ("accuracy", "agreement") else 0
    lost = bench.dense_score("select") - (1 / classes if classes else 0.0)  # by guessing
    return partial(fit, rows=len(bench.select_rows), ceiling=lost if lost > 0 else 1.0)


def mixes(space: Sequence[Pipeline]) -> bool:
    """Whether candidates differ in how rows are mixed, not just in how far they are cut."""
    return len({tuple(str(p) for p in x.passes if p.name == "mux") for x in space}) > 1


def _facts(bench: Bench, pipeline: Pipeline, dense_macs: int) -> dict[str, Any]:
    try:
        model = bench.untrained(pipeline)
    except PassError as error:
        return {"error": str(error)}
    apart = replace(model.encoder, mux=None)
    shape = shape_of(model.encoder, count(apart, bench.ctx.length).macs, dense_macs)
    return {"shape": asdict(shape), "throughput": _throughput(bench, model)}


def _throughput(bench: Bench, model: Model) -> float:
    """Of the dense model's on the baseline target, the median of some rounds."""
    ctx, inputs = bench.ctx, [b.inputs() for b in bench.ctx.workload]
    pairs = ((bench.model, bench.target.baseline()), (model, bench.targets[0]))
    runs = []
    with ExitStack() as stack:
        for given, target in pairs:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            target.draft().emit(given, ctx, folder)
            engine = target.engine(folder, ctx.threads)
            runs.append(lambda engine=engine: [engine.run(x) for x in inputs])
        first, second = interleave(runs, ROUNDS, repeat=True)
    return ratio(first, second).median_ms
