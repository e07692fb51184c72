"""How do parity, score and speed change with a lower precision?

    python bench/precision.py MODEL --data DIR --out bench/results/NAME.json
    python bench/precision.py MODEL --data DIR --out ... --passes mixed 'mux{n=2 at=3},distill'

The script exports the model of each pipeline to every target. The target `one-line` is ONNX
Runtime's `quantize_dynamic` with its defaults. On the certify rows, the script measures the
largest difference of a logit from the torch module, and the share of equal labels. It measures
scores on the certify and test rows. Nothing is chosen on these rows. The script times all
engines of one model in one interleaved run with the given model's fp32 engine.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import FILE, save
from prumux.export.graph.parity import compare
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.environment import provenance, versions
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.data.predict import BATCH, predict, torch_run
from prumux.optimizer.data.tokenize import Encoded, batches
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Engine
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.timing.interleave import interleave, speedup
from prumux.optimizer.timing.serving_point import Inputs

ONE_LINE = "one-line"
TARGETS = ("onnx{precision=fp32}", "onnx{precision=int8}", ONE_LINE)
PRUNED = "pool-early,prune{sparsity=0.6 of=macs},slice,reconstruct"


@contextmanager
def opened(evaluator: Evaluator, model: Model, target: str) -> Iterator[Engine]:
    """Export the model to a target and open the engine."""
    with tempfile.TemporaryDirectory() as folder:
        if target == ONE_LINE:
            yield _one_line(model, Path(folder), evaluator.ctx.threads)
        else:
            chosen = parse_target(target).tuned(model, evaluator.ctx)
            chosen.emit(model, evaluator.ctx, Path(folder))
            yield chosen.engine(Path(folder), evaluator.ctx.threads)


def _one_line(model: Model, folder: Path, threads: int) -> OrtEngine:
    """Quantise a model by `quantize_dynamic` with its defaults, without prumux."""
    from onnxruntime.quantization import quantize_dynamic

    save(build(model), folder)
    logging.disable(logging.WARNING)
    quantize_dynamic(folder / FILE, folder / "int8.onnx")
    logging.disable(logging.NOTSET)
    return OrtEngine(folder / "int8.onnx", threads)


def parity(evaluator: Evaluator, model: Model, engine: Engine) -> dict[str, float]:
    """Measure parity with the torch module on the certify rows."""
    reference, found, masks = [], [], []
    run = torch_run(model)
    size = batch_rows(BATCH, model.encoder.slots)
    for batch in batches(evaluator.certify_rows, size):
        inputs = batch.inputs()
        reference.append(run(inputs))
        found.append(engine.run(inputs))
        masks.append(inputs["attention_mask"])
    result = compare(reference, found, model.task, masks)
    return {"max_abs_diff": result.max_abs_diff, "agreement": result.agreement}


def scored(evaluator: Evaluator, rows: Encoded, model: Model, engine: Engine) -> float:
    """Score the engine on these rows."""
    found = predict(engine.run, rows, model.task, None, **evaluator.predictor.mixing(model))
    assert rows.labels is not None
    return model.task.score(evaluator.metric, found, rows.labels)


def _pass_over(engine: Engine, inputs: Sequence[Inputs]) -> None:
    for x in inputs:
        engine.run(x)


def measure(
    evaluator: Evaluator, name: str, text: str, targets: list[str], rounds: int
) -> list[Any]:
    """Measure one model on every target, timed in turn with the given model's fp32 engine."""
    model = evaluator.builder.build(Pipeline.parse(text)) if text else evaluator.model
    inputs = [b.inputs() for b in evaluator.ctx.workload]
    entries, runs = [], []
    with tempfile.TemporaryDirectory() as folder:
        save(build(evaluator.model), Path(folder))
        dense = OrtEngine(Path(folder) / FILE, evaluator.ctx.threads)
        runs.append(partial(_pass_over, dense, inputs))
        for target in targets:
            entry: dict[str, Any] = {"model": name, "pipeline": text, "target": target}
            try:
                with opened(evaluator, model, target) as engine:
                    entry |= parity(evaluator, model, engine)
                    entry["certify"] = scored(evaluator, evaluator.certify_rows, model, engine)
                    if evaluator.test_rows is not None:
                        entry["test"] = scored(evaluator, evaluator.test_rows, model, engine)
            except PrumuxError as error:
                entries.append(entry | {"failed": str(error)})
                continue
            entries.append(entry)
            runs.append(partial(_pass_over, engine, inputs))
        cores = evaluator.ctx.cores
        first, *others = interleave(runs, rounds, warmup=2, repeat=True, cores=cores)
    for entry, timing in zip((x for x in entries if "failed" not in x), others, strict=True):
        gain = speedup(first, timing)
        entry["throughput_ratio"] = gain.median
        entry["low"], entry["high"] = gain.low, gain.high
    return entries


def main() -> None:
    """Measure, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--passes", nargs=2, action="append", metavar=("NAME", "TEXT"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int)
    parser.add_argument("--rounds", type=int, default=11)
    options = parser.parse_args()
    request = Request(
        model=options.model,
        data=options.data,
        passes="-",
        batch=options.batch,
        length=options.length,
    )
    first = open_evaluator(request, parse_target("onnx"), Progress(1))
    about = key(first.model.source["digest"], first.data_digest, versions())
    store = Store(options.out.with_suffix(f".{about}.parts"))
    evaluator = replace(first, ctx=replace(first.ctx, store=store))
    asked = [("dense", ""), *(options.passes or [("pruned", PRUNED)])]
    entries = [
        entry
        for name, text in asked
        for entry in measure(evaluator, name, text, options.targets, options.rounds)
    ]
    found = {
        "schema_version": 1,
        "metric": evaluator.metric,
        "dense": {
            "certify": evaluator.dense_score("certify"),
            "test": None if evaluator.test_rows is None else evaluator.dense_score("test"),
        },
        "entries": entries,
        "serving": evaluator.serving.to_json(),
        "source": evaluator.model.source["digest"],
        **provenance(evaluator.ctx.cores),
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for x in entries:
        line = f"{x['model']:10} {x['target']:34} "
        line += x.get("failed") or (
            f"diff {x['max_abs_diff']:.2g} agree {100 * x['agreement']:.2f} "
            f"certify {100 * x['certify']:.2f} test {100 * x.get('test', np.nan):.2f} "
            f"{x['throughput_ratio']:.2f}x [{x['low']:.2f}, {x['high']:.2f}]"
        )
        print(line, file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
