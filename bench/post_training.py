"""How much loss does the refit avoid without training?

    python bench/post_training.py MODEL --data DIR > bench/results/NAME.json

Each model is pruned to a sparsity in multiply-adds, with and without refit, and scored on
the certify and test rows. Nothing is chosen on these rows.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import Any

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.model.cost import count
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
METHODS = {
    "cut": "pool-early,prune{{sparsity={s:g} of=macs}},slice",
    "refit": "pool-early,prune{{sparsity={s:g} of=macs}},slice,reconstruct",
}


def measure(evaluator: Evaluator, text: str) -> dict[str, Any]:
    """Measure the scores and the cost of one pipeline."""
    pipeline = Pipeline.parse(text)
    model = evaluator.builder.build(pipeline)
    roles = ("certify",) if evaluator.test_rows is None else ("certify", "test")
    return {
        "pipeline": text,
        "macs_share": count(model.encoder, evaluator.ctx.length).macs
        / count(evaluator.model.encoder, evaluator.ctx.length).macs,
        "seconds": sum(x.seconds for x in model.history),
        "layers": [asdict(x) for x in model.encoder.layers],
        **{role: evaluator.compare(pipeline, role, 1.0).to_json() for role in roles},
    }


def main() -> None:
    """Measure and print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--sparsities", type=float, nargs="+", default=SPARSITIES)
    options = parser.parse_args()
    request = Request(model=options.model, data=options.data, passes="-")
    evaluator = open_evaluator(request, parse_target("onnx"), Progress(1))
    entries = [
        {"method": method, "sparsity": s, **measure(evaluator, text.format(s=s))}
        for s in options.sparsities
        for method, text in METHODS.items()
    ]
    found = {
        "schema_version": 1,
        "entries": entries,
        "source": evaluator.model.source["digest"],
        **provenance(),
    }
    json.dump(found, sys.stdout, indent=2)
    for entry in entries:
        score = entry["test" if "test" in entry else "certify"]
        line = f"{entry['method']:6} {entry['sparsity']:.2f}  loss {100 * score['loss']:+.2f}"
        print(line, file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
