"""Is a bag of embeddings as accurate as logistic regression on words and word pairs?

    python bench/bottom.py MODEL --data sst2 --out bench/results/NAME.json
    python bench/bottom.py MODEL --data sst2 --regularise 1 10 --out ...

The pass `bag` and scikit-learn's `TfidfVectorizer(ngram_range=(1, 2))` with
`LogisticRegression` are fitted to the same training rows. The bag is also fitted to the given
model's answers. Both models and the given model are scored on select, certify and test rows.

Rates are from text to label, for all test texts in one call. For logistic regression, the call
runs the vectoriser and the classifier; for the bag, it is `Predictor.predict`. Both calls run
in turn, on all threads of the process (OMP_NUM_THREADS=1 for one thread).

`deferred` is the loss of a cascade on test rows: the given model answers the share of rows
with the smallest margins. Finished parts are stored next to the output; run the same command
again to continue. The script needs scikit-learn: pip install scikit-learn, or '.[dev]'.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from prumux.export.onnx import Onnx
from prumux.export.runtime.predictor import Predictor, load
from prumux.optimizer.base.environment import provenance, versions
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.timing.interleave import interleave, speedup

ROLES = ("select", "certify", "test")
SHARES = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)
REGULARISE = (1.0, 10.0)
"""Values of scikit-learn's C: the default, and a larger value that fits the rows better."""
ROUNDS = 7
Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Study:
    """Rows as texts and as tokens, and a store of finished parts."""

    evaluator: Evaluator
    pipeline: Pipeline

    def texts(self, role: str) -> tuple[list[str], Labels]:
        """Texts and labels of a role; `fit` = the training rows."""
        evaluator = self.evaluator
        encoded = evaluator.ctx.train if role == "fit" else evaluator.predictor.rows(role)
        rows = None if encoded is None else encoded.given
        if rows is None or rows.text_b is not None:
            raise SystemExit(f"bench/bottom.py needs {role} rows of one text each")
        return list(rows.text_a), np.asarray(rows.labels)

    def stored(self, part: str, make: Callable[[], Any], *about: object) -> Any:
        """A part of the study, computed once."""
        name = f"{part}-{key(str(self.pipeline), *map(str, about))}"
        return self.evaluator.ctx.store.json(name, make)

    def lost(self, answers: Labels, role: str) -> float:
        """Accuracy of the given model minus the accuracy of these answers."""
        labels = self.texts(role)[1]
        return self.evaluator.dense_score(role) - float((answers == labels).mean())


def deferring(study: Study, answers: Labels, margin: NDArray[Any]) -> dict[str, float]:
    """Losses on test rows if the given model answers the rows with the smallest margins."""
    dense = np.asarray(study.evaluator.predictor.predict(Pipeline(()), "test"))
    order, found = np.argsort(margin, kind="stable"), {}
    for share in SHARES:
        mixed = answers.copy()
        rows = order[: round(share * len(order))]
        mixed[rows] = dense[rows]
        found[str(share)] = study.lost(mixed, "test")
    return found


def bag_scores(study: Study) -> dict[str, Any]:
    """Accuracies of the bag of embeddings, and the seconds to build it."""
    evaluator, start = study.evaluator, time.perf_counter()
    model = evaluator.builder.build(study.pipeline)
    seconds = time.perf_counter() - start
    found: dict[str, Any] = {"seconds": seconds, "notes": dict(model.history[-1].notes)}
    found["accuracy"] = {x: evaluator.predictor.score(study.pipeline, x) for x in ROLES}
    rows = evaluator.test_rows
    assert rows is not None
    logits = np.stack(row_logits(torch_run(model), rows))
    margin = margins(logits)
    found["deferred"] = deferring(study, logits.argmax(1), margin)
    return found


def fitted(study: Study, strength: float) -> Any:
    """Fit scikit-learn's logistic regression on words and pairs."""
    made = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=strength, max_iter=1000)
    )
    return made.fit(*study.texts("fit"))


def regression_scores(study: Study, strength: float) -> dict[str, Any]:
    """Accuracies of logistic regression on words and pairs."""
    start = time.perf_counter()
    made = fitted(study, strength)
    found: dict[str, Any] = {"C": strength, "seconds": time.perf_counter() - start}
    found["accuracy"] = {x: float(made.score(*study.texts(x))) for x in ROLES}
    shares = np.sort(made.predict_proba(study.texts("test")[0]), 1)
    answers = made.predict(study.texts("test")[0])
    found["deferred"] = deferring(study, answers, shares[:, -1] - shares[:, -2])
    return found


def predictor_of(study: Study, folder: Path) -> Predictor:
    """Export the bag of embeddings, and load it for serving."""
    model = study.evaluator.builder.build(study.pipeline)
    save_artifact(model, folder)
    Onnx(precision="fp32").emit(model, study.evaluator.ctx, folder)
    return load(folder)


def rates(study: Study, strength: float) -> dict[str, Any]:
    """Time both models in turn; return rows per second from text to label."""
    texts, _ = study.texts("test")
    made = fitted(study, strength)
    with tempfile.TemporaryDirectory() as folder:
        bag = predictor_of(study, Path(folder))
        runs = [lambda: made.predict(texts), lambda: bag.predict(texts)]
        ctx = study.evaluator.ctx
        one, two = interleave(runs, ROUNDS, warmup=2, repeat=True, cores=ctx.cores)
    of_regression, of_bag = (1000 * len(texts) / x.median_ms for x in (one, two))
    return {
        "texts": len(texts),
        "threads": ctx.threads,
        "regression_rows_per_second": of_regression,
        "bag_rows_per_second": of_bag,
        "ratio": asdict(speedup(one, two)),
    }


def table(found: dict[str, Any]) -> list[str]:
    """Format one line for each model."""
    lines = ["model                    select  certify    test  seconds   deferred 0.3, 0.4"]
    dense = found["dense"]
    named = [("given", {"accuracy": dense}), ("bag", found["bag"])]
    named += [(f"words and pairs, C={x['C']:g}", x) for x in found["regressions"]]
    for name, x in named:
        scores = "  ".join(f"{100 * x['accuracy'][role]:6.2f}" for role in ROLES)
        lost = [f"{100 * x['deferred'][s]:.2f}" for s in ("0.3", "0.4") if "deferred" in x]
        lines.append(f"{name:23} {scores}  {x.get('seconds', 0):6.1f}   {', '.join(lost)}")
    speed = found["rates"]
    lines.append(
        f"text to label, {speed['threads']} threads: words and pairs "
        f"{speed['regression_rows_per_second']:,.0f} rows/s, bag "
        f"{speed['bag_rows_per_second']:,.0f} rows/s"
    )
    return lines


def main(given: Sequence[str] | None = None) -> None:
    """Measure missing parts, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pipeline", default="bag")
    parser.add_argument("--regularise", nargs="+", type=float, default=list(REGULARISE))
    options = parser.parse_args(given)
    request = Request(options.model, data=options.data, passes="-")
    opened = open_evaluator(request, parse_target("onnx"), Progress(1))
    about = key(opened.model.source["digest"], opened.data_digest, versions())
    store = Store(options.out.with_suffix(f".{about}.parts"))
    evaluator = replace(opened, ctx=replace(opened.ctx, store=store))
    study = Study(evaluator, Pipeline.parse(options.pipeline))
    strengths = options.regularise
    values = {
        "schema_version": 1,
        "dense": {x: evaluator.dense_score(x) for x in ROLES},
        "bag": study.stored("bag", partial(bag_scores, study)),
        "regressions": [
            study.stored("words", partial(regression_scores, study, x), x) for x in strengths
        ],
        "rates": study.stored("rates", partial(rates, study, strengths[0]), strengths[0]),
        "source": evaluator.model.source["digest"],
        **provenance(evaluator.ctx.cores),
    }
    options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(values)), file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
