"""Measure loss and throughput of cascades that defer different shares of rows.

    python bench/cascade.py MODEL --data DIR --out bench/results/NAME.json
    python bench/cascade.py MODEL --data DIR --out ... --first NAME 'pool-early,...'

For each first model and target, the script builds a cascade with each share of `--defer`, and
scores the cascade's engine on certify and test rows. The results are:

- `changed`: the share of answers that differ from the given model's answers;
- `alone_differ`: the share of answers that change if rows run one by one and not in batches.
  It must be 0 in fp32 if the first model does not mix rows;
- `edges`: the largest difference of a cascade's logits from those of the stage that answered
  the row, for one batch and thresholds that defer no row, one row and all rows.

All engines of a first model are timed in one interleaved run with the given model in fp32.
Finished parts are stored next to the output; run the same command again to continue. Nothing
is chosen on certify or test rows.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.environment import provenance, versions
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.data.predict import predict, row_logits
from prumux.optimizer.data.tokenize import Encoded, collate
from prumux.optimizer.model.cascade import ALL
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.tasks.metrics import AGREEMENT
from prumux.optimizer.timing.serving_point import compare
from prumux.passes.cascade import Cascade

FIRST = "pool-early,prune{sparsity=0.9 of=macs},slice,reconstruct"
TO = "pool-early"
SHARES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 1.0)
TARGETS = ("onnx{precision=fp32}", "onnx{precision=int8}")
ALONE_ROWS = 256
"""Number of test rows that run one by one."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Study:
    """Cascades of one first model on one target."""

    evaluator: Evaluator
    name: str
    first: Pipeline
    to: str
    target: Target

    def pipeline(self, share: float) -> Pipeline:
        """The pipeline of the cascade that defers this share."""
        return self.first.then(Cascade(to=self.to, defer=share))

    def model(self, share: float) -> Model:
        """Build the cascade from both stored stages."""
        for stage in (self.first, Pipeline.parse(self.to) if self.to else Pipeline(())):
            self.evaluator.builder.build(stage)
        return self.evaluator.builder.build(self.pipeline(share))

    def open(self, model: Model, folder: Path, target: Target | None = None) -> OrtEngine:
        """Export a model and open its engine."""
        ctx, target = self.evaluator.ctx, target or self.target
        target.emit(model, ctx, folder)
        engine = target.engine(folder, ctx.threads)
        assert isinstance(engine, OrtEngine)
        return engine

    def stored(self, part: str, make: Any, *about: object) -> Any:
        """A part of the study, computed once."""
        inputs = str(self.first), self.to, str(self.target), *map(str, about)
        return self.evaluator.ctx.store.json(f"{part}-{key(*inputs)}", make)


def scores(study: Study, share: float) -> dict[str, Any]:
    """Measure the losses, changed answers and deferred rows of one cascade."""
    evaluator, model = study.evaluator, study.model(share)
    mixing = evaluator.predictor.mixing(model)
    found: dict[str, Any] = {"defer": share, "select": {"deferred": _share_of(model)}}
    with tempfile.TemporaryDirectory() as folder:
        engine = study.open(model, Path(folder))
        for role in ("certify", "test"):
            rows = evaluator.predictor.rows_by_role[role]
            if rows is None:
                continue
            answers = predict(engine.run, rows, model.task, None, **mixing)
            dense, labels = evaluator.predictor.with_labels(Pipeline(()), role)
            told = row_logits(lambda x: engine.deferred(x)[:, None], rows, None, **mixing)
            score = partial(model.task.score, evaluator.metric)
            found[role] = {
                "rows": len(rows),
                "loss": score(dense, labels) - score(answers, labels),
                "changed": 1 - model.task.score(AGREEMENT, answers, dense),
                "deferred": float(np.mean(told)),
            }
        found["alone_differ"] = alone_differ(evaluator, model, engine)
    return found


def _share_of(model: Model) -> float:
    assert model.second is not None
    return model.second.share


def alone_differ(evaluator: Evaluator, model: Model, engine: OrtEngine) -> float:
    """Share of answers that change when rows run one by one."""
    rows = evaluator.test_rows or evaluator.certify_rows
    some = rows.take(range(min(ALONE_ROWS, len(rows))))
    mixing = evaluator.predictor.mixing(model)
    together = np.stack(row_logits(engine.run, some, None, **mixing)).argmax(-1)
    alone = np.concatenate([engine.run(_one(some, i)) for i in range(len(some))]).argmax(-1)
    return float((together != alone).mean())


def _one(rows: Encoded, i: int) -> dict[str, Any]:
    return dict(collate(rows, np.array([i])).inputs())


def edges(study: Study) -> dict[str, Any]:
    """Run a batch with thresholds that defer no row, one row and all rows."""
    model = study.model(0.5)
    second = model.second
    assert second is not None
    inputs = study.evaluator.ctx.workload[0].inputs()
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        one = study.open(replace(model, second=None), here / "1").run(inputs)
        two = study.open(second.model, here / "2").run(inputs)
        margin = np.sort(margins(one))
        limits = {"none": 0.0, "one": float(margin[:2].mean()), "all": ALL}
        found = {}
        for name, threshold in limits.items():
            cascade = replace(model, second=replace(second, threshold=threshold))
            engine = study.open(cascade, here / name)
            told, logits = engine.deferred(inputs) > 0, engine.run(inputs)
            expected = np.where(told[:, None], two, one)
            found[name] = {
                "rows": len(logits),
                "deferred": int(told.sum()),
                "largest_difference": float(np.abs(logits - expected).max()),
            }
    return found


def times(study: Study, shares: Sequence[float]) -> list[dict[str, float]]:
    """Time the first model, the second model and the cascades in turn with the given model."""
    evaluator = study.evaluator
    one = study.model(shares[0])
    assert one.second is not None
    models = [replace(one, second=None), one.second.model, *map(study.model, shares)]
    with ExitStack() as stack:

        def opened(model: Model, target: Target) -> OrtEngine:
            return study.open(
                model, Path(stack.enter_context(tempfile.TemporaryDirectory())), target
            )

        engines = [opened(evaluator.model, evaluator.target.baseline())]
        engines += [opened(model, study.target) for model in models]
        ctx = evaluator.ctx
        speeds = compare([(x, ctx.workload) for x in engines], ctx.progress, ctx.cores)
    return [asdict(x) for x in speeds[1:]]


def measure(study: Study, shares: Sequence[float]) -> dict[str, Any]:
    """Measure all missing parts of one first model on one target."""
    entries = [
        study.stored("scores", partial(scores, study, share), share) for share in shares
    ]
    at_edges = study.stored("edges", partial(edges, study))
    first, second, *speeds = study.stored("times", partial(times, study, shares), *shares)
    return {
        "first": study.name,
        "pipeline": str(study.first),
        "to": study.to,
        "target": str(study.target),
        "first_speed": first,
        "second_speed": second,
        "edges": at_edges,
        "entries": [x | {"speed": y} for x, y in zip(entries, speeds, strict=True)],
    }


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Format one line for each cascade."""
    lines = [
        "first      target                     defer  deferred     loss (points)  changed  "
        "alone  throughput",
        "                                             test  certify  test         test     "
        "differ",
    ]
    for x in found:
        for entry in x["entries"]:
            test, speed = entry.get("test", entry["certify"]), entry["speed"]
            lines.append(
                f"{x['first']:10} {x['target'][:26]:26} {entry['defer']:5.2f}  "
                f"{100 * test['deferred']:5.1f} %  {100 * entry['certify']['loss']:6.2f}  "
                f"{100 * test['loss']:6.2f}  {100 * test['changed']:5.1f} %  "
                f"{100 * entry['alone_differ']:4.1f} %  {speed['throughput_ratio']:.2f}x "
                f"[{speed['throughput_ratio_low']:.2f}, {speed['throughput_ratio_high']:.2f}]"
            )
        alone = x["first_speed"], x["second_speed"]
        a, b = (f"{speed['throughput_ratio']:.2f}x" for speed in alone)
        lines.append(f"{x['first']:10} first model alone {a}, second model alone {b}")
    return lines


def main() -> None:
    """Measure missing parts, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first", nargs=2, action="append", metavar=("NAME", "PIPELINE"))
    parser.add_argument("--to", default=TO, help="pipeline of the second model; '' = dense")
    parser.add_argument("--defer", nargs="+", type=float, default=list(SHARES))
    parser.add_argument("--targets", nargs="+", default=list(TARGETS))
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    request = Request(options.model, data=options.data, passes="-", batch=options.batch)
    given = open_evaluator(request, parse_target("onnx"), Progress(1))
    about = key(given.model.source["digest"], given.data_digest, options.batch, versions())
    store = Store(options.out.with_suffix(f".{about}.parts"))
    evaluator = replace(given, ctx=replace(given.ctx, store=store))
    found = []
    for name, text in options.first or [("cut", FIRST)]:
        for target in map(parse_target, options.targets):
            tuned = target.tuned(evaluator.model, evaluator.ctx)
            study = Study(evaluator, name, Pipeline.parse(text), options.to, tuned)
            found.append(measure(study, options.defer))
    values = {
        "schema_version": 1,
        "metric": evaluator.metric,
        "studies": found,
        "serving": evaluator.serving.to_json(),
        "source": evaluator.model.source["digest"],
        **provenance(evaluator.ctx.cores),
    }
    options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(found)), file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
