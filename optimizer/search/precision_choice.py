"""Chooses the precision of candidates, once a run, on the given model before any trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target, on_engine
from prumux.optimizer.timing.interleave import interleave, speedup

from .evaluator import Evaluator

GAIN = 1.1
"""The least speed-up of the given model that a lower precision must bring."""
SHARE = 0.25
"""The largest share of the budget that a lower precision may lose; pruning gets the rest."""
ROUNDS = 7


def choose_precision(evaluator: Evaluator, limit: float | None) -> Evaluator:
    """The evaluator with concrete targets: the lowest precision that pays, then the exact one.

    Candidates are for the first; the exact one is timed beside it. The choice is stored, so
    that a resumed run makes the same one.

    Args:
        evaluator: its target may resolve to several, see `Target.variants`.
        limit: the allowed loss; None = no budget, so that the precision stays exact.
    """
    exact, *others = evaluator.target.variants(evaluator.model.encoder)

    def decide() -> dict[str, list[str]]:
        first = exact.tuned(evaluator.model, evaluator.ctx)
        if limit is None or not others:
            return {"targets": [str(first)]}
        paying = [t for other in others if (t := _paying(evaluator, first, other, limit))]
        return {"targets": [str(t) for t in (*paying[-1:], first)]}

    found = evaluator.ctx.store.json("precision", decide)["targets"]
    return _with_targets(evaluator, found)


def _with_targets(evaluator: Evaluator, texts: list[str]) -> Evaluator:
    """The evaluator with these targets; for unsorted rows, costs are in their layout too."""
    targets, ctx = tuple(parse_target(text) for text in texts), evaluator.ctx
    if ctx.arrivals == "mixed":
        ctx = replace(ctx, target=targets[-1])
    return replace(evaluator, targets=targets, ctx=ctx)


def _paying(evaluator: Evaluator, exact: Target, other: Target, limit: float) -> Target | None:
    """The target, tuned to the given model, if it is fast and accurate enough."""
    ctx = evaluator.ctx
    tuned = other.tuned(evaluator.model, ctx)
    gain = _gain(evaluator, exact, tuned)
    said = f"{tuned}: {gain:.2f}x with the given model"
    if gain < GAIN:
        ctx.progress.say(f"{said}, not used: at least {GAIN:g}x are needed")
        return None
    loss = evaluator.dense_score("select") - evaluator.dense_score("select", tuned)
    said += f", {100 * loss:.2f} points lost on the select rows"
    if loss > SHARE * limit:
        ctx.progress.say(f"{said}, not used: at most {100 * SHARE * limit:.2f} may be")
        return None
    ctx.progress.say(said)
    return tuned


def _gain(evaluator: Evaluator, exact: Target, other: Target) -> float:
    ctx = evaluator.ctx
    inputs = [batch.inputs() for batch in ctx.workload]

    def run(engine: Any) -> None:
        for x in inputs:
            engine.run(x)

    with (
        on_engine(exact.draft(), evaluator.model, ctx) as one,
        on_engine(other.draft(), evaluator.model, ctx) as two,
        ctx.progress.task("timing lower precision", ROUNDS) as step,
    ):
        runs = [lambda engine=engine: run(engine) for engine in (one, two)]
        first, second = interleave(
            runs, ROUNDS, warmup=2, tick=step, repeat=True, cores=ctx.cores
        )
    return speedup(first, second).median


def exact_only(evaluator: Evaluator) -> Evaluator:
    """The evaluator with its exact target only, for when nothing may be lost."""

    def decide() -> dict[str, list[str]]:
        exact = evaluator.target.baseline()
        return {"targets": [str(exact.tuned(evaluator.model, evaluator.ctx))]}

    found = evaluator.ctx.store.json("precision", decide)["targets"]
    return _with_targets(evaluator, found)
