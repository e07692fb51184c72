"""Does pruning all layers jointly by measured time lose less than simpler ways to prune?

    python bench/joint_choice.py MODEL --data DIR > bench/results/NAME.json

All variants are pruned to the same measured speed-up and refitted; nothing is trained:

    joint      prune{speedup=S}: Fisher importance, all branches at once, measured time
    uniform    the same share of heads and FFN units in every layer, by Fisher importance
    magnitude  joint choice, but importance is the squared norm of a unit's output weights

The seed determines the rows for importance and refit. Models are scored on the test rows, or
on the certify rows if there is no test file. Nothing is chosen on these rows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import replace
from typing import Any

import torch

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import match_lengths, open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.timing.calibration import measured_speedup
from prumux.optimizer.timing.cost_table import cost_table
from prumux.passes.pruning.allocate import keep_best, summed_importance, with_counts
from prumux.passes.pruning.branch_options import GRID, choose_counts, measured_costs
from prumux.passes.pruning.importance import Scores, fisher
from prumux.passes.reconstruct import Reconstruct
from prumux.passes.slice import slice_model

SPEEDUPS = (2.0, 3.0)
SEEDS = (0, 1, 2)
NEAR = 0.03
ROUNDS = 6


def magnitude(model: Model) -> Scores:
    """Squared norm of each unit's columns in the linear map to the residual stream."""
    heads, ffn = [], []
    for i, layer in enumerate(model.encoder.layers):
        out = model.weights[f"layers.{i}.attention.output.weight"].square().sum(0)
        heads.append(out.view(layer.heads, -1).sum(1))
        ffn.append(model.weights[f"layers.{i}.ffn.down.weight"].square().sum(0))
    return Scores(tuple(heads), tuple(ffn))


def uniform(model: Model, scores: Scores, share: float) -> Masks:
    """Masks that keep the most important `share` of every layer's units."""
    heads = [round(share * len(m)) for m in model.masks.heads]
    ffn = [round(share * len(m) / GRID) * GRID for m in model.masks.ffn]
    kept = keep_best(scores.heads, heads, model.masks.heads)
    return replace(
        model.masks, heads=tuple(kept), ffn=tuple(keep_best(scores.ffn, ffn, model.masks.ffn))
    )


def joint(model: Model, scores: Scores, ctx: Context, target_speedup: float) -> Masks:
    """Masks of the units that the joint choice keeps, by the cost table and these scores."""
    table = cost_table(model, ctx)
    worth = [
        summed_importance(s, m, range(len(m) + 1))
        for s, m in zip(
            (*scores.heads, *scores.ffn), (*model.masks.heads, *model.masks.ffn), strict=True
        )
    ]
    limit = table.dense_ms / target_speedup - table.base_ms
    return with_counts(
        model.masks, scores, choose_counts(model, worth, measured_costs(table), limit, GRID)
    )


def at_speedup(model: Model, ctx: Context, method: str, asked: float) -> tuple[Model, float]:
    """Search for the masks of a method that give a measured speed-up.

    Returns:
        The masked model with the speed-up nearest to `asked`, and this speed-up.
    """
    scores = magnitude(model) if method == "magnitude" else fisher(model, ctx)
    low, high, dial = 0.0, 1.0, asked if method != "uniform" else 1 / asked
    found: list[tuple[float, Model, float]] = []
    for _ in range(6):
        try:
            masks = (
                uniform(model, scores, dial)
                if method == "uniform"
                else joint(model, scores, ctx, dial)
            )
        except ValueError:  # by the cost table, no pruned shape is fast enough
            break
        masked = replace(model, masks=masks)
        reached = measured_speedup(masks.sizes(model.encoder), ctx, ROUNDS)
        found.append((abs(reached / asked - 1), masked, reached))
        if found[-1][0] <= NEAR:
            break
        if method == "uniform":  # a share of units: bisection
            low, high = (low, dial) if reached < asked else (dial, high)
            dial = (low + high) / 2
        else:
            dial *= asked / reached
    _, masked, reached = min(found, key=lambda x: x[0])
    return masked, reached


def measure(evaluator: Evaluator, method: str, asked: float, seed: int) -> dict[str, Any]:
    """Prune by one method to one speed-up, refit and score. Return an entry of the JSON."""
    train = evaluator.ctx.train
    assert train is not None
    fit = match_lengths(train, evaluator.certify_rows, seed)
    ctx = replace(evaluator.ctx, fit=fit, seed=seed)
    model = Pipeline.parse("pool-early").run(evaluator.model, ctx)
    masked, reached = at_speedup(model, ctx, method, asked)
    small = Reconstruct().run(slice_model(masked), ctx)
    rows = evaluator.certify_rows if evaluator.test_rows is None else evaluator.test_rows
    labels = rows.labels
    assert labels is not None
    answers = predict(torch_run(small), rows, model.task)
    found = model.task.score(evaluator.metric, answers, labels)
    return {
        "method": method,
        "speedup_asked": asked,
        "speedup_reached": reached,
        "seed": seed,
        "heads": [x.heads for x in small.encoder.layers],
        "ffn": [x.ffn for x in small.encoder.layers],
        "score": found,
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--speedups", type=float, nargs="+", default=SPEEDUPS)
    options = parser.parse_args()
    request = Request(model=options.model, data=options.data, passes="-")
    evaluator = open_evaluator(request, parse_target("onnx"), Progress(1))
    torch.set_num_threads(evaluator.ctx.threads)
    entries = [
        measure(evaluator, method, asked, seed)
        for asked in options.speedups
        for method in ("joint", "uniform", "magnitude")
        for seed in SEEDS
    ]
    dense = evaluator.dense_score("certify" if evaluator.test_rows is None else "test")
    found = {
        "schema_version": 1,
        "dense_score": dense,
        "entries": entries,
        "serving": evaluator.serving.to_json(),
        **provenance(evaluator.ctx.cores),
    }
    json.dump(found, sys.stdout, indent=2)
    for asked in options.speedups:
        for method in ("joint", "uniform", "magnitude"):
            of = [e for e in entries if (e["method"], e["speedup_asked"]) == (method, asked)]
            losses = [100 * (dense - e["score"]) for e in of]
            line = f"{asked:g}x {method:10} loss {statistics.mean(losses):6.2f} "
            line += f"[{min(losses):.2f}, {max(losses):.2f}] at "
            line += ", ".join(f"{e['speedup_reached']:.2f}x" for e in of)
            print(line, file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
