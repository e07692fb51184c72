"""About how long a run will take, for `--dry-run`: counted work times one measured forward."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.report.formats import duration
from prumux.optimizer.search.presets import LIMIT_S
from prumux.optimizer.timing.serving_point import ROUNDS

if TYPE_CHECKING:
    from prumux.optimizer.data.tokenize import Encoded
    from prumux.optimizer.pipeline.passes import Pass
    from prumux.optimizer.pipeline.pipeline import Pipeline

    from .job import Plan

SAMPLE = 32
"""Rows that are timed, in one batch."""
RUNS = 4
PROOFS = 2
"""Candidates that a search certifies, as a rule."""
BUILD_ROWS = 2048
"""A pass without training takes about as long as a forward over so many fit rows: it looks at
fewer, and does more with each. From the trials in bench/results/sst2-quick-2cpu.json."""
STEP = 4
"""Forwards that training on a row takes: teacher, student, and back through the student."""
SHIPPING = 2 * (ROUNDS + 10)
"""Times that the workload is run to check, choose and time the engines."""


def estimate(todo: Plan) -> dict[str, Any]:
    """Seconds that the run will take, what they are made of, and where they come from."""
    request, bench = todo.request, todo.bench
    if request.climbs and todo.limit is not None:
        limit = request.time_limit_s or LIMIT_S[request.effort]
        source = f"the time limit of --effort {request.effort}, most of which is training"
        return _said(limit, {"training and all else, at most": limit}, source)
    token_s = _token_s(todo)
    trials = 1 if todo.limit is None else math.ceil(math.log2(len(todo.space) + 1))
    proofs = 0 if todo.limit is None else min(PROOFS, trials)
    roles = (bench.select_rows, bench.certify_rows, bench.test_rows)
    select, certify, test = (0 if x is None else _tokens(x) for x in roles)
    each = max(_build_s(p, todo, token_s) for p in todo.space)
    workload = sum(b.input_ids.size for b in bench.ctx.workload)
    parts = {
        "the dense model's scores": token_s * (select + certify + test),
        f"building {trials} of {len(todo.space)} candidates": trials * each,
        "their scores on the select rows": token_s * trials * select,
        f"{proofs} certificates and the report": token_s * ((proofs + 3) * certify + test),
        "export and timing": token_s * SHIPPING * workload,
    }
    total = sum(parts.values())
    source = (
        f"{SAMPLE} rows run through the dense model now, times what will be run; every "
        "candidate is counted as slow as the dense model, and the search as halving"
    )
    if any(getattr(x, "speedup", None) for p in todo.space for x in p.passes):
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
    """Seconds that the dense model takes for one token of a batch, the best of a few runs."""
    bench = todo.bench
    rows = bench.select_rows.take(range(min(SAMPLE, len(bench.select_rows))))
    run, taken = torch_run(bench.model), math.inf
    for _ in range(RUNS):
        start = time.perf_counter()
        predict(run, rows, bench.model.task)
        taken = min(taken, time.perf_counter() - start)
    return taken / max(1, _tokens(rows))


def _build_s(pipeline: Pipeline, todo: Plan, token_s: float) -> float:
    """Seconds that all passes of a candidate take."""
    return sum(_pass_s(p, todo, token_s) for p in pipeline.passes)


def _pass_s(pass_: Pass, todo: Plan, token_s: float) -> float:
    ctx = todo.bench.ctx
    if pass_.trains:
        minutes = getattr(pass_, "minutes", None)
        if minutes is not None:
            return 60 * float(minutes)
        epochs = float(getattr(getattr(pass_, "length", None), "epochs", None) or 1)
        real = ctx.train or ctx.fit
        made = float(getattr(pass_, "augment", 0)) * len(real) / len(ctx.fit)
        return epochs * STEP * token_s * (_tokens(real) + made * _tokens(ctx.fit))
    if pass_.preserves or pass_.cuts:
        return 0.0
    return token_s * _tokens(ctx.fit.take(range(min(BUILD_ROWS, len(ctx.fit)))))


def _tokens(rows: Encoded) -> int:
    return int(rows.lengths.sum())
