"""How exact is the cost table, and does `prune{speedup=...}` reach the requested speed-up?

    python bench/cost_table.py MODEL --data DIR > bench/results/NAME.json

The script measures the cost table, with `pool-early` off and on. Then it times random shapes
that the table was not fitted to, and the shapes that `prune{speedup=...}` chooses. Each shape
runs in turn with the given model. Time depends on sizes only, so all shapes have random
weights.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.timing.calibration import time_ms, uneven
from prumux.optimizer.timing.cost_table import CostTable, cost_table
from prumux.passes.prune import Prune

SPEEDUPS = (2.0, 3.0, 4.0, 6.0)
ROWS = 256
"""Number of rows for importance. Few rows are enough: here any choice of units will do."""
SEED = 1000
"""Seed of the random shapes. The shapes to which the table is fitted have other seeds."""


def measure(model: Model, ctx: Context, shapes: int, rounds: int) -> dict[str, Any]:
    """Measure the table, its error on random shapes, and the speed-ups of `prune`."""
    start = time.monotonic()
    try:
        table = cost_table(model, ctx)
    except PrumuxError as error:
        return {"refused": str(error), "table_seconds": time.monotonic() - start}
    seconds = time.monotonic() - start
    pruned = [(s, _pruned(model, ctx, s)) for s in SPEEDUPS]
    aimed = [(s, x) for s, x in pruned if isinstance(x, Encoder)]
    random = uneven(model.encoder, shapes, SEED)
    encoders = [ctx.dense.encoder, *random, *(x for _, x in aimed)]
    dense_ms, *times = time_ms(encoders, ctx, rounds)
    # The machine's speed changes from minute to minute: scale by the given model's time.
    drift = dense_ms / table.dense_ms
    found = [
        _compared(table, x, ms, drift) for x, ms in zip(random, times[:shapes], strict=True)
    ]
    reached = [
        {"asked": s, "reached": dense_ms / ms, "planned": table.dense_ms / table.predict_ms(x)}
        | _compared(table, x, ms, drift)
        for (s, x), ms in zip(aimed, times[shapes:], strict=True)
    ]
    return {
        "table": asdict(table),
        "table_seconds": seconds,
        "dense_ms": dense_ms,
        "drift": drift,
        "worst_error": max(abs(x["error"]) for x in found),
        "shapes": found,
        "speedups": reached,
        "not_possible": {f"{s:g}": x for s, x in pruned if isinstance(x, str)},
    }


def _pruned(model: Model, ctx: Context, speedup: float) -> Encoder | str:
    """The sizes after pruning, or the message if the speed-up cannot be reached."""
    try:
        masked = Prune(speedup=speedup).run(model, ctx)
    except PrumuxError as error:
        return str(error)
    return masked.masks.sizes(masked.encoder)


def _compared(
    table: CostTable, encoder: Encoder, measured_ms: float, drift: float
) -> dict[str, Any]:
    predicted_ms = table.predict_ms(encoder) * drift
    return {
        "heads": [x.heads for x in encoder.layers],
        "ffn": [x.ffn for x in encoder.layers],
        "predicted_ms": predicted_ms,
        "measured_ms": measured_ms,
        "error": predicted_ms / measured_ms - 1,
    }


def _show(name: str, found: dict[str, Any]) -> None:
    lines = [f"{name}: table in {found['table_seconds']:.0f} s"]
    if "refused" in found:
        lines.append(found["refused"])
    for x in found.get("shapes", ()):
        sizes = f"heads {_list(x['heads'])} ffn {_list(x['ffn'])}"
        times = f"{x['predicted_ms']:8.1f} ms predicted {x['measured_ms']:8.1f} ms measured"
        lines.append(f"{times} {100 * x['error']:+6.1f} %  {sizes}")
    if "shapes" in found:
        errors = 100 * found["worst_error"], 100 * found["table"]["error"]
        lines.append("worst error {:.1f} %; the table's own checks {:.1f} %".format(*errors))
    for x in found.get("speedups", ()):
        off = 100 * (x["reached"] / x["asked"] - 1)
        lines.append(f"speedup {x['asked']:g}: reached {x['reached']:.2f} ({off:+.1f} %)")
    lines += [f"speedup {s}: {text}" for s, text in found.get("not_possible", {}).items()]
    print("\n".join(lines), file=sys.stderr)  # noqa: T201 - the table of a script


def _list(sizes: list[int]) -> str:
    return ",".join(map(str, sizes))


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--shapes", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    request = Request(model=options.model, data=options.data, passes="-")
    evaluator = open_evaluator(request, parse_target(options.target), Progress(1))
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        # The store is empty, so that the table is measured now.
        store = Store(Path(folder))
        fit = evaluator.ctx.fit.take(range(min(ROWS, len(evaluator.ctx.fit))))
        ctx = replace(evaluator.ctx, fit=fit, store=store, cache=store)
        for name, early in (("plain", False), ("pool-early", True)):
            encoder = replace(evaluator.model.encoder, pool_early=early)
            model = replace(evaluator.model, encoder=encoder)
            found[name] = measure(model, ctx, options.shapes, options.rounds)
            _show(name, found[name])
    document = {
        "schema_version": 1,
        **found,
        "workload": [list(b.input_ids.shape) for b in ctx.workload],
        "threads": ctx.threads,
        "target": str(ctx.target),
        "source": evaluator.model.source["digest"],
        **provenance(evaluator.ctx.cores),
    }
    json.dump(document, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
