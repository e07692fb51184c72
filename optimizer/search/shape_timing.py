"""Time candidates before training, because throughput depends on shapes alone."""

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
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.costs import Costs
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.timing.interleave import interleave, speedup

from .accuracy_model import FitLosses, Shape, fit, shape_of
from .acquisition import TimedCandidate
from .bisection import Trial
from .evaluator import Evaluator

ROUNDS = 3
REPORT_ROUNDS = 1
"""Number of rounds if only the report shows the times and no choice depends on them."""
AT_ONCE = 8
"""Number of engines in memory at the same time."""


def time_candidates(
    evaluator: Evaluator, space: Sequence[Pipeline], rounds: int = ROUNDS
) -> list[TimedCandidate]:
    """Time each candidate's untrained shape; skip candidates that cannot be built.

    A few candidates at a time are exported untrained. They take turns with the dense engine.
    With `ctx.costs` times are predicted instead. Results are stored, so a resumed run uses
    the same ones.

    Args:
        evaluator: builds and exports the candidates.
        space: the candidates.
        rounds: turns of each engine. With fewer than `ROUNDS`, no turn waits until threads run
            on cores near each other.

    Raises:
        PassError: no candidate can be built.
    """
    unique = {_name(evaluator, x): x for x in space}
    todo = [name for name in unique if not evaluator.ctx.store.has(name)]
    made: dict[str, dict[str, Any]] = {}
    if todo:
        doing = "timing shapes" if evaluator.ctx.costs is None else "sizing candidates"
        with evaluator.ctx.progress.task(doing, len(todo)) as step:
            for names in (todo[i : i + AT_ONCE] for i in range(0, len(todo), AT_ONCE)):
                measured = _measured(evaluator, [unique[x] for x in names], rounds, step)
                for name, facts in zip(names, measured, strict=True):
                    made[name] = evaluator.ctx.store.json(name, partial(dict, facts))
    found = []
    for name, pipeline in unique.items():
        facts = made.get(name) or evaluator.ctx.store.json(name, dict)
        if error := facts.get("error"):
            where = str(evaluator.targets[0])
            evaluator.record({"pipeline": str(pipeline), "target": where, "error": error})
            continue
        found.append(TimedCandidate(pipeline, Shape(**facts["shape"]), facts["throughput"]))
    if not found:
        raise PassError(f"no candidate can be made; the last: {error}", exit_code=2)
    return found


def with_predicted_ratio(evaluator: Evaluator, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials, each with the ratio of throughput that was measured for its shape."""
    known: dict[Pipeline, TimedCandidate] = {}
    if trials:
        with suppress(PrumuxError, OSError):  # only the report needs the times
            tried = [x.pipeline for x in trials]
            known = {x.pipeline: x for x in time_candidates(evaluator, tried, REPORT_ROUNDS)}
    return tuple(
        replace(x, predicted_ratio=known[x.pipeline].throughput) if x.pipeline in known else x
        for x in trials
    )


def loss_fitter(evaluator: Evaluator) -> FitLosses:
    """A function that fits the accuracy model to trials of this evaluator."""
    lost = evaluator.dense_score("select") - evaluator.model.task.chance(evaluator.metric)
    return partial(
        fit, rows=evaluator.select_rows.scored_rows, ceiling=lost if lost > 0 else 1.0
    )


def varies_multiplexing(space: Sequence[Pipeline]) -> bool:
    """True if candidates differ in multiplexing, not only in pruning."""
    return len({tuple(p for p in x.passes if p.slots) for x in space}) > 1


def _name(evaluator: Evaluator, pipeline: Pipeline) -> str:
    return f"shape-{key(pipeline, evaluator.targets[0])}"


def _measured(
    evaluator: Evaluator,
    space: Sequence[Pipeline],
    rounds: int,
    step: Callable[[], object],
) -> list[dict[str, Any]]:
    """Facts of each candidate: shape and ratio of throughput, or an error.

    The ratio is to the given model's throughput on the baseline target.
    """
    if evaluator.ctx.costs is not None:
        return [_predicted(evaluator, x, evaluator.ctx.costs, step) for x in space]
    ctx = evaluator.ctx
    dense = count(replace(evaluator.model.encoder, mux=None), ctx.length).macs
    facts: list[dict[str, Any]] = []
    runs: list[Callable[[], object]] = []
    with ExitStack() as stack:

        def add(model: Model, target: Target) -> None:
            folder = Path(stack.enter_context(TemporaryDirectory()))
            own = evaluator.predictor.context_of(model)
            target.draft().emit(model, own, folder)
            engine = target.engine(folder, ctx.threads)
            inputs = [b.inputs() for b in own.workload]
            runs.append(lambda: [engine.run(x) for x in inputs])

        add(evaluator.model, evaluator.target.baseline().layouts()[0])
        for pipeline in space:
            try:
                model = evaluator.builder.untrained(pipeline)
            except PassError as error:
                facts.append({"error": str(error)})
            else:
                facts.append({"shape": _shape(model.encoder, dense, ctx.length)})
                add(model, evaluator.targets[0])
            step()
        cores = None if rounds < ROUNDS else ctx.cores
        first, *others = interleave(runs, rounds, repeat=True, cores=cores)
    made = (x for x in facts if "shape" in x)
    for entry, timing in zip(made, others, strict=True):
        entry["throughput"] = speedup(first, timing).median
    return facts


def _predicted(
    evaluator: Evaluator, pipeline: Pipeline, costs: Costs, step: Callable[[], object]
) -> dict[str, Any]:
    """The facts of `_measured`, with the throughput that a costs file predicts."""
    given, length = evaluator.model.encoder, evaluator.ctx.length
    dense = count(replace(given, mux=None), length).macs
    baseline, target = evaluator.target.baseline().timed_as, evaluator.targets[0].timed_as
    try:
        model = evaluator.builder.untrained(pipeline)
        ratio = costs.estimate_model(model, given, target, baseline).speedup
    except PassError as error:
        return {"error": str(error)}
    finally:
        step()
    return {"shape": _shape(model.encoder, dense, length), "throughput": ratio}


def _shape(encoder: Encoder, dense: int, length: int) -> dict[str, Any]:
    unmixed = count(replace(encoder, mux=None), length).macs
    return asdict(shape_of(encoder, unmixed, dense))
