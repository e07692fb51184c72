"""Before the search, choose one precision for all candidates.

The choice uses the given model, and untrained candidates if the loss is large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target, on_engine
from prumux.optimizer.timing.interleave import interleave, speedup

from .bisection import bisect_trials
from .evaluator import Evaluator
from .presets import exact_pipeline

GAIN = 1.1
"""Smallest speed-up of the given model for which a lower precision is used."""
SHARE = 0.25
"""Share of the budget that a lower precision may lose without a further comparison.

If it loses more, little of the budget remains for pruning. It is then used only if its fastest
candidate is faster than the fastest candidate in the other precision."""
ROUNDS = 7


def choose_precision(
    evaluator: Evaluator, limit: float | None, space: Sequence[Pipeline] = ()
) -> Evaluator:
    """Set the evaluator's concrete targets: the chosen precision, then the exact one.

    Candidates use the first target. The exact target is only timed. The choice is stored,
    because a resumed run must use the same one.

    Args:
        evaluator: the evaluator, whose target may resolve to several (`Target.variants`).
        limit: the allowed loss; None = without a budget the precision stays exact.
        space: candidates of the search. Those without training may be tried here.
    """
    exact, *others = evaluator.target.variants(evaluator.model.encoder)

    def decide() -> dict[str, list[str]]:
        first = exact.tuned(evaluator.model, evaluator.ctx)
        if limit is None or not others:
            return {"targets": [str(first)]}
        best = first
        for other in others:
            if _has_times(evaluator, other):
                best = _better(evaluator, first, best, other, limit, space)
        return {"targets": [str(x) for x in dict.fromkeys((best, first))]}

    found = evaluator.ctx.store.json("precision", decide)["targets"]
    return _with_targets(evaluator, found)


def _with_targets(evaluator: Evaluator, texts: list[str]) -> Evaluator:
    """The evaluator with these targets. For unsorted rows, costs use the last target."""
    targets, ctx = tuple(parse_target(text) for text in texts), evaluator.ctx
    if ctx.arrivals == "mixed":
        ctx = replace(ctx, target=targets[-1])
    return replace(evaluator, targets=targets, ctx=ctx)


def _better(  # noqa: PLR0917 - two targets, compared on everything
    evaluator: Evaluator,
    exact: Target,
    best: Target,
    other: Target,
    limit: float,
    space: Sequence[Pipeline],
) -> Target:
    """`other`, tuned to the given model, if it is fast and accurate enough; else `best`."""
    say = evaluator.ctx.progress.say
    tuned = other.tuned(evaluator.model, evaluator.ctx)
    gain = _gain(evaluator, (exact, evaluator.model), (tuned, evaluator.model))
    said = f"{tuned}: {gain:.2f}x with the given model"
    if gain < GAIN:
        say(f"{said}, not used: at least {GAIN:g}x are needed")
        return best
    loss = evaluator.dense_score("select") - evaluator.dense_score("select", tuned)
    said += f", {100 * loss:.2f} points lost on the select rows"
    if loss <= SHARE * limit:
        say(said)
        return tuned
    if loss > limit:
        say(f"{said}, not used: at most {100 * limit:.2f} may be")
        return best
    say(f"{said}: comparing the candidates of both precisions")
    return _faster(evaluator, best, tuned, limit, space)


def _has_times(evaluator: Evaluator, other: Target) -> bool:
    """False if times come from a costs file without this target."""
    costs = evaluator.ctx.costs
    if costs is None or other.timed_as in costs.targets:
        return True
    evaluator.ctx.progress.say(
        f"{other}: not used, '{costs.path}' holds no times of {other.timed_as}"
    )
    return False


def _faster(
    evaluator: Evaluator, one: Target, other: Target, limit: float, space: Sequence[Pipeline]
) -> Target:
    """The one of two targets on which the fastest candidate within the limit is faster.

    The losses of candidates are measured on the select rows.
    """
    untrained = [p for p in space if not any(x.training for x in p.passes)]
    if not untrained:
        return one
    order, found = evaluator.builder.by_cost(untrained), []
    for target in (one, other):
        trial = replace(evaluator, targets=(target,)).trial
        within = [x for x in bisect_trials(order, trial, limit) if x.loss <= limit]
        found.append(within[-1].pipeline if within else exact_pipeline())
    build = evaluator.builder.build
    gain = _gain(evaluator, (one, build(found[0])), (other, build(found[1])))
    faster = other if gain > 1 else one
    evaluator.ctx.progress.say(
        f"{found[1]} on {other}: {gain:.2f}x of {found[0]} on {one}: {faster} is used"
    )
    return faster


def _gain(
    evaluator: Evaluator, before: tuple[Target, Model], after: tuple[Target, Model]
) -> float:
    """Speed-up of the model and target `after` over the model and target `before`."""
    ctx = evaluator.ctx
    if ctx.costs is not None:
        given, base = evaluator.model.encoder, before[0].timed_as
        found = [
            ctx.costs.estimate_model(model, given, target.timed_as, base).speedup
            for target, model in (before, after)
        ]
        return found[1] if before[1] is evaluator.model else found[1] / found[0]
    contexts = [evaluator.predictor.context_of(model) for _, model in (before, after)]
    inputs = [[batch.inputs() for batch in x.workload] for x in contexts]

    def run(engine: Any, rows: Sequence[Any]) -> None:
        for x in rows:
            engine.run(x)

    with (
        on_engine(before[0].draft(), before[1], contexts[0]) as one,
        on_engine(after[0].draft(), after[1], contexts[1]) as two,
        ctx.progress.task("timing lower precision", ROUNDS) as step,
    ):
        runs = [partial(run, *x) for x in zip((one, two), inputs, strict=True)]
        first, second = interleave(
            runs, ROUNDS, warmup=2, tick=step, repeat=True, cores=ctx.cores
        )
    return speedup(first, second).median


def exact_only(evaluator: Evaluator) -> Evaluator:
    """The evaluator with the exact target only, for runs that may lose nothing."""

    def decide() -> dict[str, list[str]]:
        exact = evaluator.target.baseline()
        return {"targets": [str(exact.tuned(evaluator.model, evaluator.ctx))]}

    found = evaluator.ctx.store.json("precision", decide)["targets"]
    return _with_targets(evaluator, found)
