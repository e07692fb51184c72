"""How much faster is a graph without padding, if batches keep the order of arrival?

    python bench/ragged.py MODEL --data sst2 mnli qqp goemotions --out bench/results/NAME.json
    python bench/ragged.py MODEL --data sst2 --optimised RESULT --out FILE

The rows of every data set are put into random order, like arriving requests, and cut into
batches. The given model and an optimised model run in these graphs, all in turn:

- in fp32: padded, padded and fused, and ragged;
- in int8: padded and ragged.

The script reports throughput (median, lowest and highest round), the largest difference of a
logit, and the share of answers that differ. Only the lengths of the rows matter, so the data
may be of another task. Without `--optimised`, the pipeline of `--passes` makes the optimised
model, without training. Finished parts are stored next to the output; run the same command
again to continue.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from prumux.export.graph.fusion import fuse
from prumux.export.graph.graph import build
from prumux.export.graph.int8 import lower
from prumux.export.runtime.fusion_choice import padding
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.environment import provenance, versions
from prumux.optimizer.base.errors import PrumuxError, UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.rows import read_texts
from prumux.optimizer.data.tokenize import Batch, Encoded, batches, encode
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.tasks.registry import from_config
from prumux.optimizer.timing.interleave import Timing, interleave, speedup

PASSES = "pool-early,prune{sparsity=0.8 of=macs},slice,reconstruct"
BATCHES = (8, 32, 64)
ROUNDS = 5
FIT_ROWS = 1024
VARIANTS = (
    ("fp32", "padded"),
    ("fp32", "fused"),
    ("fp32", "ragged"),
    ("int8", "padded"),
    ("int8", "ragged"),
)
"""Precision and layout. The padded graph is the baseline of its precision."""


@dataclass(frozen=True, eq=False)
class Study:
    """The facts that all parts share."""

    given: Model
    optimised: str
    """A result of prumux-opt, or the text of a pipeline."""
    made: bool
    """True if `optimised` is a pipeline."""
    fit: Encoded
    options: argparse.Namespace
    cores: CoreMonitor

    @cached_property
    def models(self) -> dict[str, Model]:
        """The given model and the optimised model, loaded or made at the first use."""
        if not self.made:
            return {"dense": self.given, "optimised": load_model(self.optimised)}
        ctx = Context(
            fit=self.fit.take(range(min(FIT_ROWS, len(self.fit)))),
            workload=tuple(batches(self.fit.take(range(32)), 32)),
            dense=self.given,
            threads=self.options.threads,
            progress=Progress(1),
        )
        return {
            "dense": self.given,
            "optimised": Pipeline.parse(self.optimised).run(self.given, ctx),
        }

    @cached_property
    def engines(self) -> dict[tuple[str, str, str], OrtEngine]:
        """Open engines of every model in every variant."""
        return {
            (name, *variant): OrtEngine(
                graph(model, *variant).SerializeToString(), self.options.threads
            )
            for name, model in self.models.items()
            for variant in VARIANTS
        }


def graph(model: Model, precision: str, layout: str) -> onnx.ModelProto:
    """Build the graph of one variant."""
    plain = build(model, ragged=layout == "ragged")
    if layout == "fused":
        return fuse(plain, attention=True)
    return lower(plain) if precision == "int8" else plain


def arrived(data: str, given: Model, rows: int, seed: int) -> Encoded:
    """Read rows of a data set in random order, truncated to the model's length."""
    assert given.tokenizer is not None
    path = Path(data)
    split = "validation" if path.is_dir() and "validation" in find_files(path) else None
    texts = from_config({"id2label": {0: "a", 1: "b"}})  # any task that reads texts
    found = encode(read_texts(path, texts, split), given.tokenizer, given.encoder)
    order = np.random.default_rng(seed).permutation(len(found))
    return found.take(order[:rows])


def measure(study: Study, rows: Encoded, size: int) -> dict[str, Any]:
    """Measure throughput and answers of every engine, for one data set and batch size."""
    options = study.options
    each = batch_rows(size, max(x.slots for x in study.engines.values()))
    whole = rows.take(range(len(rows) // each * each or len(rows)))
    made = batches(whole, each, by_length=False)
    timed = made[: max(1, options.rows // each)]
    inputs = [x.inputs() for x in timed]
    runs = [partial(pass_over, x, inputs) for x in study.engines.values()]
    timings = dict(
        zip(
            study.engines,
            interleave(runs, options.rounds, warmup=1, cores=study.cores),
            strict=True,
        )
    )
    logits = {name: answers(x, made) for name, x in study.engines.items()}
    count = sum(len(x.rows) for x in timed)
    return {
        "batch": each,
        "rows": count,
        "padding": padding(timed),
        "answers": sum(len(x.rows) for x in made),
        "engines": [entry(name, timings, logits, count) for name in study.engines],
    }


def pass_over(engine: OrtEngine, inputs: Sequence[Mapping[str, NDArray[Any]]]) -> None:
    """Run all batches once."""
    for x in inputs:
        engine.run(x)


def answers(engine: OrtEngine, made: Sequence[Batch]) -> NDArray[Any]:
    """Compute the logits of rows; for token tasks, the logits of real positions."""
    found = [(engine.run(x.inputs()), x.attention_mask) for x in made]
    return np.concatenate([y if y.ndim == 2 else y[mask > 0] for y, mask in found])


def entry(
    name: tuple[str, str, str],
    timings: Mapping[tuple[str, str, str], Timing],
    logits: Mapping[tuple[str, str, str], NDArray[Any]],
    count: int,
) -> dict[str, Any]:
    """Compare an engine with its model's padded engine, and with the given model in fp32."""
    model, precision, layout = name
    mine, padded = timings[name], (model, precision, "padded")
    gain = speedup(timings[padded], mine)
    dense = speedup(timings["dense", "fp32", "padded"], mine)
    exact = logits[model, "fp32", "padded"]
    return {
        "model": model,
        "precision": precision,
        "layout": layout,
        "rows_per_second": 1000 * count / mine.median_ms,
        "rows_per_second_low": 1000 * count / mine.high_ms,
        "rows_per_second_high": 1000 * count / mine.low_ms,
        "over_padded": gain.median,
        "over_padded_low": gain.low,
        "over_padded_high": gain.high,
        "over_dense": dense.median,
        "over_dense_low": dense.low,
        "over_dense_high": dense.high,
        "max_abs_diff": float(np.abs(logits[name] - logits[padded]).max()),
        "other_answers": other(logits[name], logits[padded]),
        "mean_abs_diff_from_fp32": float(np.abs(logits[name] - exact).mean()),
        "other_answers_than_fp32": other(logits[name], exact),
    }


def other(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Share of answers that differ."""
    return float((found.argmax(-1) != wanted.argmax(-1)).mean())


def table(parts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format the lines to print."""
    lines = [
        f"{'data':12} {'batch':>5} {'padding':>7}  {'model':9} {'graph':11} {'rows/s':>7}  "
        f"{'over padded':22} {'over dense':>10} {'diff':>8} {'other':>7}"
    ]
    for part in parts:
        for x in part["engines"]:
            low, high = x["over_padded_low"], x["over_padded_high"]
            gain = f"{x['over_padded']:.2f}x [{low:.2f}, {high:.2f}]"
            lines.append(
                f"{part['data']:12.12} {part['batch']:>5} {part['padding']:>7.2f}  "
                f"{x['model']:9} {x['precision'] + ' ' + x['layout']:11} "
                f"{x['rows_per_second']:>7.0f}  {gain:22} {x['over_dense']:>9.2f}x "
                f"{x['max_abs_diff']:>8.1g} {100 * x['other_answers']:>6.2f}%"
            )
    return lines


def parsed() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("model")
    add("--data", nargs="+", required=True, metavar="DIR")
    add("--out", type=Path, required=True)
    add("--optimised", metavar="RESULT", help="a result of prumux-opt")
    add("--passes", default=PASSES, help="makes the optimised model without --optimised")
    add("--batch", type=int, nargs="+", default=list(BATCHES))
    add("--rows", type=int, default=512, help="rows of one timed pass")
    add("--answers", type=int, default=1024, help="rows whose answers are compared")
    add("--rounds", type=int, default=ROUNDS)
    add("--threads", type=int, default=cpu_threads())
    add("--seed", type=int, default=0)
    return parser.parse_args()


def study_of(options: argparse.Namespace) -> tuple[Study, dict[str, Encoded]]:
    """Read the models and the rows of each data set."""
    given = load_model(options.model)
    if given.tokenizer is None:
        raise UsageError(f"no tokenizer lies beside '{options.model}'")
    most = max(options.rows, options.answers)
    rows = {x: arrived(x, given, most, options.seed) for x in options.data}
    fit = arrived(options.data[0], given, FIT_ROWS, options.seed + 1)
    what, made = options.optimised or options.passes, options.optimised is None
    return Study(given, what, made, fit, options, CoreMonitor()), rows


def main() -> None:
    """Measure missing parts, write the JSON, print a table."""
    options = parsed()
    torch.set_num_threads(options.threads)
    try:
        study, rows = study_of(options)
        optimised = study.optimised
        if not study.made:
            optimised = load_model(study.optimised).source["digest"]
        about = (study.given.source["digest"], optimised, versions())
        fixed = (options.rows, options.answers, options.rounds, options.threads, options.seed)
        store = Store(options.out.with_suffix(f".{key(*about, *fixed)}.parts"))
        parts = []
        for data, some in rows.items():
            for size in options.batch:
                name = f"part-{key(some.ids.values.tobytes(), size)}"
                found = store.json(name, partial(measure, study, some, size))
                parts.append({"data": Path(data).name, **found})
                print("\n".join(table(parts[-1:])), file=sys.stderr)  # noqa: T201
    except PrumuxError as error:
        raise SystemExit(f"ragged.py: {error}") from error
    report = {
        "schema_version": 1,
        "optimised": study.optimised if study.made else Path(study.optimised).name,
        "rounds": options.rounds,
        "seed": options.seed,
        "threads": options.threads,
        "parts": parts,
        "source": study.given.source["digest"],
        **provenance(study.cores),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(parts)), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
