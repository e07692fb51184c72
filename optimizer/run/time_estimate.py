"""Estimate the time of a run for `--dry-run`, from a timed forward pass and counted work."""

from __future__ import annotations

import math
import time
from typing import Any

from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.report.formats import duration
from prumux.optimizer.search.presets import LIMIT_S
from prumux.optimizer.timing.serving_point import ROUNDS

from .plan import Plan

SAMPLE = 32
"""Number of rows in the timed batch."""
RUNS = 4
PROOFS = 2
"""Typical number of candidates that a search certifies."""
BUILD_ROWS = 2048
"""A pass without training takes about as long as a forward pass over this many fit rows.

The source is the trials in bench/results/sst2-quick-2cpu.json."""
STEP = 4
"""Training on a row takes as long as 4 forward passes (teacher, student, backward)."""
PACKAGING = 2 * (ROUNDS + 10)
"""Number of runs of the workload that check, choose and time the engines."""


def estimate(todo: Plan) -> dict[str, Any]:
    """Estimated seconds of the run, their parts, and the source of the estimate."""
    request, evaluator = todo.request, todo.evaluator
    if request.progressive and todo.limit is not None:
        limit = request.time_limit_s or LIMIT_S[request.effort]
        source = f"the time limit of --effort {request.effort}, most of which is training"
        return _said(limit, {"training and all else, at most": limit}, source)
    token_s = _token_s(todo)
    trials = 1 if todo.limit is None else math.ceil(math.log2(len(todo.space) + 1))
    proofs = 0 if todo.limit is None else min(PROOFS, trials)
    roles = (evaluator.select_rows, evaluator.certify_rows, evaluator.test_rows)
    select, certify, test = (0 if x is None else _tokens(x) for x in roles)
    each = max(_build_s(p, todo, token_s) for p in todo.space)
    workload = sum(b.input_ids.size for b in evaluator.ctx.workload)
    parts = {
        "the dense model's scores": token_s * (select + certify + test),
        f"building {trials} of {len(todo.space)} candidates": trials * each,
        "their scores on the select rows": token_s * trials * select,
        f"{proofs} certificates and the report": token_s * ((proofs + 3) * certify + test),
        "export and timing": token_s * PACKAGING * workload,
    }
    total = sum(parts.values())
    source = (
        f"{SAMPLE} rows run through the dense model now, times what will be run; every "
        "candidate is counted as slow as the dense model, and the search as halving"
    )
    timed = evaluator.ctx.costs is None
    if timed and any(x.measures for p in todo.space for x in p.passes):
        source += "; timing shapes for speedup=, where it was not done before, is not counted"
    if total > (most := request.time_limit_s or math.inf):
        source += f"; the parts add up to {duration(total)}, and --time-limit ends the search"
    return _said(min(total, most), parts, source)


def _said(seconds: float, parts: dict[str, float], source: str) -> dict[str, Any]:
    return {
        "seconds": round(seconds, 1),
        "about": duration(seconds),
        "parts_seconds": {name: round(value, 1) for name, value in parts.items()},
        "from": f"an estimate, easily wrong by half: {source}",
    }


def _token_s(todo: Plan) -> float:
    """Seconds of the given model for one token of a batch, from the fastest of a few runs."""
    evaluator = todo.evaluator
    rows = evaluator.select_rows.take(range(min(SAMPLE, len(evaluator.select_rows))))
    run, taken = torch_run(evaluator.model), math.inf
    for _ in range(RUNS):
        start = time.perf_counter()
        predict(run, rows, evaluator.model.task)
        taken = min(taken, time.perf_counter() - start)
    return taken / max(1, _tokens(rows))


def _build_s(pipeline: Pipeline, todo: Plan, token_s: float) -> float:
    """Estimated seconds of all passes of a candidate."""
    return sum(_pass_s(p, todo, token_s) for p in pipeline.passes)


def _pass_s(pass_: Pass, todo: Plan, token_s: float) -> float:
    ctx = todo.evaluator.ctx
    if training := pass_.training:
        if training.minutes is not None:
            return 60 * training.minutes
        real = ctx.train or ctx.fit
        made = training.augment * len(real) / len(ctx.fit)
        tokens = _tokens(real) + made * _tokens(ctx.fit)
        return training.epochs * STEP * token_s * tokens
    if pass_.preserves:
        return 0.0
    return token_s * _tokens(ctx.fit.take(range(min(BUILD_ROWS, len(ctx.fit)))))


def _tokens(rows: Encoded) -> int:
    return int(rows.lengths.sum())
