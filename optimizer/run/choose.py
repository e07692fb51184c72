"""Choose the pipeline of a run with the search that fits the request."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.acquisition import search_by_acquisition
from prumux.optimizer.search.bisection import (
    Extend,
    SearchResult,
    no_cascade,
    safe_loss,
    search_by_bisection,
)
from prumux.optimizer.search.cascades import bag_candidate, cascade_maker
from prumux.optimizer.search.precision_choice import exact_only
from prumux.optimizer.search.presets import LIMIT_S, exact_pipeline
from prumux.optimizer.search.progressive_run import search_default_schedule
from prumux.optimizer.search.shape_timing import (
    loss_fitter,
    time_candidates,
    varies_multiplexing,
    with_predicted_ratio,
)
from prumux.optimizer.workers.scheduler import search_with_workers
from prumux.optimizer.workers.speculation import Search
from prumux.optimizer.workers.workers import UNUSED, Workers

from .plan import Plan

PACKAGING_S = 120.0
"""Seconds of the time limit for export and timing, but at most a fifth of the limit."""
LEAST_LIMIT_OF_BAG = 0.03
"""Smallest budget, a share of the score, for which the quick effort tries a bag of embeddings.

The bag takes a minute and changes over a tenth of the answers. On SST-2 it lost 4 to 8 points,
and its cascades lost their place to cut models at a budget of 2 points."""

CASCADES = 2
"""Number of cascades that the quick effort tries, at most."""


def choose(
    todo: Plan, started: float, workers: Workers
) -> tuple[Plan, SearchResult | None, Pipeline]:
    """Search for a pipeline within the budget; without a budget take the given pipeline.

    If no candidate keeps the budget in a lower precision, a second search uses the exact
    target.

    Args:
        todo: the plan, whose evaluator has concrete targets.
        started: start of the run, by `time.monotonic`.
        workers: processes that build candidates ahead of the search.

    Returns:
        The plan with the targets of the result, the outcome of the search (None without a
        search), and the pipeline to package.
    """
    found, chosen = search(todo, started, workers)
    targets = todo.evaluator.targets
    if found is not None and found.trials and not found.proofs and len(targets) > 1:
        # All candidates lost too much on select rows, so no certify row has been used.
        todo.evaluator.ctx.progress.say(
            f"no candidate keeps it there: searching {targets[-1]}"
        )
        todo = replace(todo, evaluator=replace(todo.evaluator, targets=targets[-1:]))
        found, chosen = search(todo, started, workers)
    if found is not None:
        found = replace(found, trials=with_predicted_ratio(todo.evaluator, found.trials))
        if found.winner is None:
            todo = replace(todo, evaluator=exact_only(todo.evaluator))
    return todo, found, chosen


def useful_workers(todo: Plan) -> Workers:
    """The request's workers, or no workers and a message if they cannot help."""
    request, workers = todo.request, Workers.parse(todo.request.workers)
    if todo.limit is None or len(todo.space) == 1:
        why = "there is one pipeline to run"
    elif todo.limit == 0:
        why = "nothing may be lost and so nothing is searched"
    elif request.progressive:
        why = f"--effort {request.effort} trains one candidate after another"
    else:
        return workers
    if not workers.here_only:
        todo.evaluator.ctx.progress.say(UNUSED.format(why=why))
    return Workers()


def search(
    todo: Plan, started: float, workers: Workers
) -> tuple[SearchResult | None, Pipeline]:
    """Run the search that fits the plan, on the first target of its evaluator."""
    evaluator, request, limit = todo.evaluator, todo.request, todo.limit
    if limit is None:
        return None, todo.space[0]
    exact = exact_pipeline()
    if limit == 0:
        reason = "nothing may be lost: exact passes only"
        return SearchResult((), (), exact, None, reason), exact

    allowed = request.time_limit_s or LIMIT_S.get(request.effort, math.inf)

    def left_s() -> float:
        return started + max(0.8 * allowed, allowed - PACKAGING_S) - time.monotonic()

    def out_of_time(pipeline: Pipeline) -> bool:
        return evaluator.builder.training_s(pipeline) > left_s()

    if request.progressive and request.budget:
        points, limit_s = request.budget.limit(1.0), request.time_limit_s
        found = search_default_schedule(
            evaluator, request.effort, points, limit, limit_s, left_s
        )
    else:
        # The user's own space gets no further candidates.
        given = request.passes is not None
        extend = no_cascade if given else cascade_maker(evaluator, limit, CASCADES)
        found = search_with_workers(
            _free_search(todo, limit, extend), evaluator, limit, out_of_time, workers
        )
    return found, found.winner or exact


def _free_search(todo: Plan, limit: float, extend: Extend) -> Search:
    """The search of a space of independent candidates. It times needed shapes in advance."""
    evaluator = todo.evaluator
    safe = safe_loss(evaluator.certify_rows.scored_rows, limit)
    if varies_multiplexing(todo.space):
        timed, fit = time_candidates(evaluator, todo.space), loss_fitter(evaluator)
        return lambda trial, certify, out_of_time: search_by_acquisition(
            timed, trial, certify, limit, out_of_time, fit=fit, safe=safe
        )
    wide = todo.request.passes is None and limit >= LEAST_LIMIT_OF_BAG
    apart = bag_candidate(evaluator) if wide else None
    lowered = todo.request.passes is None and not evaluator.targets[0].exact
    # The lower precision alone is a candidate, too.
    space = (exact_pipeline(), *todo.space) if lowered else todo.space
    if evaluator.ctx.costs is not None:  # milliseconds replace multiply-adds
        predicted = time_candidates(evaluator, space)
        order = [x.pipeline for x in sorted(predicted, key=lambda x: x.throughput)]
    else:
        order = evaluator.builder.by_cost(space)
    return lambda trial, certify, out_of_time: search_by_bisection(
        order,
        trial,
        certify,
        limit,
        out_of_time,
        safe=safe,
        rows=evaluator.certify_rows.scored_rows,
        extend=extend,
        apart=apart,
    )
