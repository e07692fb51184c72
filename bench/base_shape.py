"""Time scoring, pruning, refit and export of a model of BERT-base's shape.

    python bench/base_shape.py TOKENIZER --data DIR > bench/results/NAME.json

The model has random weights, 12 layers of 12 heads and 3072 FFN units, and 768 hidden
dimensions. The rows come from any text and the tokenizer of any BERT-like model (30,522
pieces). Nothing is trained. For comparison, Kwon et al. (2022,
https://arxiv.org/abs/2204.09656) report less than three minutes on one GPU for their method.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.passes.pruning.importance import fisher

PASSES = ("pool-early", "prune{sparsity=0.6 of=macs}", "slice", "reconstruct")


def timed(name: str, seconds: dict[str, float], work: Callable[[], Any]) -> Any:
    """Call `work`, and store its time in seconds under a name."""
    start = time.monotonic()
    found = work()
    seconds[name] = round(time.monotonic() - start, 1)
    print(f"{name}: {seconds[name]} s", file=sys.stderr)  # noqa: T201 - the table of a script
    return found


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizer")
    parser.add_argument("--data", required=True)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        BertForSequenceClassification(BertConfig()).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        request = Request(model=folder, data=options.data, passes="-", device=options.device)
        target = parse_target("onnx")
        evaluator = timed(
            "read model and data", seconds, lambda: open_evaluator(request, target, Progress())
        )
        ctx, model = evaluator.ctx, evaluator.model
        timed("scores (first)", seconds, lambda: fisher(model, ctx))
        for text in PASSES:
            model = timed(text, seconds, partial(Pipeline.parse(text).run, model, ctx))
        timed("export", seconds, lambda: target.emit(model, ctx, Path(folder) / "engine"))
    found = {
        "schema_version": 1,
        "seconds": seconds,
        "total_seconds": round(sum(seconds.values()), 1),
        "rows": {"fit": len(ctx.fit), "mean_tokens": float(ctx.fit.lengths.mean())},
        "encoder": str(model.encoder),
        **provenance(),
    }
    json.dump(found, sys.stdout, indent=2)


if __name__ == "__main__":
    main()
