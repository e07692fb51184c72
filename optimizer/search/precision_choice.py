"""Does a lower precision pay? Asked once a run, of the given model, before any trial."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target, on_engine
from prumux.optimizer.timing.interleave import interleave, ratio

from .evaluator import Bench

GAIN = 1.1
"""A lower precision must run the given model so much faster."""
SHARE = 0.25
"""And lose at most this share of the budget: pruning is to have the rest."""
ROUNDS = 7


def lowered(bench: Bench, limit: float | None) -> Bench:
    """The bench with the target that its candidates are for, and what is timed beside it.

    The first is the lowest precision that pays, the last the exact one. What was found is
    kept, so that a resumed run goes on with it.

    Args:
        bench: its target may stand for several, see `Target.variants`.
        limit: what may be lost; None = no budget: nothing is lowered unasked.
    """
    exact, *others = bench.target.variants(bench.model.encoder)

    def decide() -> dict[str, list[str]]:
        if limit is None or not others:
            return {"targets": [str(exact.tuned(bench.model, bench.ctx))]}
        paying = [t for other in others if (t := _paying(bench, exact, other, limit))]
        return {"targets": [str(t) for t in (*paying[-1:], exact)]}

    found = bench.ctx.store.json("precision", decide)["targets"]
    return replace(bench, targets=tuple(parse_target(text) for text in found))


def _paying(bench: Bench, exact: Target, other: Target, limit: float) -> Target | None:
    """The target, tuned to the given model, if it is faster and accurate enough."""
    ctx = bench.ctx
    tuned = other.tuned(bench.model, ctx)
    gain = _gain(bench, exact, tuned)
    said = f"{tuned}: {gain:.2f}x with the given model"
    if gain < GAIN:
        ctx.progress.say(f"{said}, not used: at least {GAIN:g}x are needed")
        return None
    loss = bench.dense_score("select") - bench.dense_score("select", tuned)
    said += f", {100 * loss:.2f} points lost on the select rows"
    if loss > SHARE * limit:
        ctx.progress.say(f"{said}, not used: at most {100 * SHARE * limit:.2f} may be")
        return None
    ctx.progress.say(said)
    return tuned


def _gain(bench: Bench, exact: Target, other: Target) -> float:
    ctx = bench.ctx
    inputs = [batch.inputs() for batch in ctx.workload]

    def run(engine: Any) -> None:
        for x in inputs:
            engine.run(x)

    with (
        on_engine(exact.draft(), bench.model, ctx) as one,
        on_engine(other.draft(), bench.model, ctx) as two,
        ctx.progress.task("timing lower precision", ROUNDS) as step,
    ):
        runs = [lambda engine=engine: run(engine) for engine in (one, two)]
        first, second = interleave(runs, ROUNDS, warmup=2, tick=step, repeat=True)
    return ratio(first, second).median_ms


def unlowered(bench: Bench) -> Bench:
    """The bench where nothing may be lost: only exact targets."""
    return replace(bench, targets=(bench.target.baseline(),))
