"""How much loss does each pipeline cost at each throughput?

    python bench/frontier.py MODEL --data DIR --out bench/results/NAME.json
    python bench/frontier.py MODEL --data DIR --out ... --passes late 'mux{n=2 at=3},distill'

The methods (`--methods`) are as follows. All except `refit` train for the same number of
epochs:

    refit               prune and refit without training
    distill             prune, refit and distill
    learn-masks         learn masks while training, then distill
    mux2, mux5, mux10   prune, then multiplex 2, 5 or 10 rows, then distill

`--passes NAME TEXT` measures a pipeline in place of these methods. The score of a multiplexed
model is the mean over several random groupings of the rows.

Models are scored on the test rows, or on the certify rows if there is no test file. Nothing is
chosen on these rows. First, throughput is predicted from untrained shapes, as in the search.
At the end, the script measures the throughput of all plain graphs in one interleaved run.
Finished models are stored in a folder beside the result, so that a killed run can continue.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prumux.optimizer.base.environment import device, provenance, versions
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.data.predict import BATCH, torch_run
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.search.shape_timing import time_candidates
from prumux.optimizer.timing.interleave import interleave, speedup

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
METHODS = {
    "refit": "pool-early,prune{{sparsity={s:g} of=macs}},slice,reconstruct",
    "distill": (
        "pool-early,prune{{sparsity={s:g} of=macs}},slice,reconstruct,distill{{epochs={e:g}}}"
    ),
    "learn-masks": (
        "pool-early,learn-masks{{sparsity={s:g} of=macs epochs={h:g}}},slice,reconstruct,"
        "distill{{epochs={h:g}}}"
    ),
} | {
    f"mux{n}": (
        f"pool-early,prune{{{{sparsity={{s:g}} of=macs}}}},slice,reconstruct,mux{{{{n={n}}}}},"
        "warm-up{{epochs={h:g}}},distill{{epochs={h:g}}}"
    )
    for n in (2, 5, 10)
}
PRUNING = ("refit", "distill", "learn-masks")


def measure(evaluator: Evaluator, method: str, text: str) -> dict[str, Any]:
    """Measure the scores and the cost of one pipeline."""
    pipeline = Pipeline.parse(text)
    model = evaluator.builder.build(pipeline)
    role = "certify" if evaluator.test_rows is None else "test"
    dense, left = count(evaluator.model.encoder, evaluator.ctx.length), count(model.encoder, 1)
    score, mux = (
        evaluator.compare(pipeline, role, 1.0),
        evaluator.predictor.partner_sensitivity(pipeline, role),
    )
    return {
        "method": method,
        "pipeline": text,
        "weights_share": left.encoder_parameters / dense.encoder_parameters,
        "macs_share": count(model.encoder, evaluator.ctx.length).macs / dense.macs,
        "minutes": sum(x.seconds for x in model.history) / 60,
        "hidden": model.encoder.hidden,
        "layers": [asdict(x) for x in model.encoder.layers],
        "rows": role,
        # For multiplexed models, the score is the mean over several drawings of the groups.
        "loss": score.score_dense - mux["mean"] if mux else score.loss,
        "score": score.to_json(),
        "select": evaluator.compare(pipeline, "select", 1.0).to_json(),
        "divergence_nats": divergence(evaluator, model),
        "mux": mux,
    }


def divergence(evaluator: Evaluator, model: Model) -> float | None:
    """Mean KL divergence from the given model's predictions on the select rows, in nats."""
    if not model.task.exclusive:
        return None
    given = _log_p(evaluator, evaluator.model)
    found = _log_p(evaluator, model)
    return float((given.exp() * (given - found)).sum(-1).mean())


def _log_p(evaluator: Evaluator, model: Model) -> Tensor:
    """Log-probabilities [N, C] of the select rows, with one random grouping of mixed rows."""
    run, rows, mixing = (
        torch_run(model),
        evaluator.select_rows,
        evaluator.predictor.mixing(model),
    )
    size = batch_rows(BATCH, model.encoder.slots)
    found = torch.empty(len(rows), model.encoder.labels)
    for batch in batches(rows, size, seed=mixing.get("seed")):
        found[batch.rows] = torch.as_tensor(run(batch.inputs()))
    return torch.log_softmax(found, dim=-1)


def time_all(evaluator: Evaluator, texts: list[str], rounds: int) -> list[dict[str, float]]:
    """Time all engines in one interleaved run, and compare them with the given model's."""
    ctx, inputs = evaluator.ctx, [b.inputs() for b in evaluator.ctx.workload]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for i, text in enumerate(["", *texts]):
            model = evaluator.builder.build(Pipeline.parse(text)) if text else evaluator.model
            place = Path(folder) / str(i)
            evaluator.target.draft().emit(model, ctx, place)
            engine = evaluator.target.engine(place, ctx.threads)
            runs.append(lambda engine=engine: [engine.run(x) for x in inputs])
    dense, *others = interleave(runs, rounds, warmup=2, repeat=True, cores=ctx.cores)
    gains = [speedup(dense, x) for x in others]
    return [{"throughput_ratio": x.median, "low": x.low, "high": x.high} for x in gains]


def plot(entries: list[dict[str, Any]], path: Path, title: str) -> None:
    """Plot lost points by throughput, one line per method; the entry n2-s0.6 is on line n2."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    lines: dict[str, list[dict[str, Any]]] = {}
    for x in entries:
        lines.setdefault(re.sub(r"^(n\d+)-s[\d.]+$", r"\1", x["method"]), []).append(x)
    for method, of in lines.items():
        points = sorted((x["speed"]["throughput_ratio"], 100 * x["loss"]) for x in of)
        axes.plot(*zip(*points, strict=True), "o-", label=method)
    axes.axhline(2, color="grey", linewidth=0.8)
    axes.set(xlabel="throughput, dense = 1", ylabel="points lost", title=title)
    axes.invert_yaxis()
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=PRUNING)
    parser.add_argument("--epochs", type=float, default=2.0)
    parser.add_argument("--passes", nargs=2, action="append", metavar=("NAME", "TEXT"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=9)
    return parser.parse_args()


def main() -> None:
    """Measure, write the JSON and the plot, and print a table."""
    options = _options()
    request = Request(
        model=options.model,
        data=options.data,
        passes="-",
        device=options.device,
        seed=options.seed,
    )
    opened = open_evaluator(request, parse_target("onnx"), Progress(1))
    about = key(opened.model.source["digest"], opened.data_digest, options.seed, versions())
    store = Store(options.out.with_suffix(f".{about}.parts"))
    evaluator = replace(opened, ctx=replace(opened.ctx, store=store))
    epochs = options.epochs
    asked = options.passes or [
        (method, METHODS[method].format(s=sparsity, e=epochs, h=epochs / 2))
        for sparsity in options.sparsities
        for method in options.methods
    ]
    untrained = time_candidates(evaluator, [Pipeline.parse(text) for _, text in asked])
    predicted = {x.pipeline: x.throughput for x in untrained}
    entries = []
    for method, text in asked:
        entries.append(measure(evaluator, method, text))
        loss = 100 * entries[-1]["loss"]
        print(f"loss {loss:+.2f}  {method:12} {text}", file=sys.stderr)  # noqa: T201
    speeds = time_all(evaluator, [x["pipeline"] for x in entries], options.rounds)
    for entry, speed in zip(entries, speeds, strict=True):
        known = predicted.get(Pipeline.parse(entry["pipeline"]))
        entry["speed"] = {**speed, "predicted_ratio": known}
    found = {
        "schema_version": 1,
        "entries": entries,
        "serving": evaluator.serving.to_json(),
        "seed": options.seed,
        "source": evaluator.model.source["digest"],
        **provenance(evaluator.ctx.cores),
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    plot(entries, options.out.with_suffix(".png"), f"{evaluator.metric}, {device()['cpu']}")
    for x in entries:
        line = f"{x['method']:12} {100 * x['macs_share']:5.1f} % of the multiply-adds"
        line += f" {100 * x['loss']:+6.2f} {x['speed']['throughput_ratio']:6.2f}x"
        print(f"{line} {x['minutes']:5.1f} min", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
