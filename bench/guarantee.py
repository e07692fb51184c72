"""Does the budget hold? Compare a thousand simulated searches with the true loss.

    python bench/guarantee.py MODEL --data DIR --out bench/results/NAME.json

The script records every candidate's answers on all labelled rows once. The certify and test
rows together are the population: a candidate's loss on the whole population is its true loss.
Each simulated user draws certify rows from the population and select rows from the data's
select rows, both with replacement. Then the user runs the checks and the search of `prumux-opt
--effort quick`. The promise is broken for a user if the true loss of the shipped model exceeds
the budget. prumux promises that at most 5 % of users get such a model. If the checks refuse a
user's budget, the user gets no model.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.environment import provenance, versions
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.certificate.baselines import Judged, check
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.certificate.certificate import Certificate, certify
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.bisection import Trial, safe_loss, search_by_bisection
from prumux.optimizer.search.presets import default_space
from prumux.optimizer.tasks.task import Task

Ints = NDArray[np.int64]
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Answers of each candidate and of the given model on labelled rows."""

    found: Ints
    """Answers of the candidates, [candidates, rows]."""
    dense: Ints
    labels: Ints


@dataclass(frozen=True, eq=False)
class Population:
    """The answers of every candidate on each row."""

    order: tuple[Pipeline, ...]
    """Candidates from the slowest to the fastest."""
    select: Recorded
    rows: Recorded
    """Numbers of the population's rows. The search only sees samples of them."""
    task: Task
    metric: str = "accuracy"

    def loss(self, rows: Recorded, candidate: int, chosen: Any = slice(None)) -> float:
        """Score of the given model minus the candidate's, on the chosen rows."""
        labels = rows.labels[chosen]
        before, after = (
            self.task.score(self.metric, x[chosen], labels)
            for x in (rows.dense, rows.found[candidate])
        )
        return before - after

    @cached_property
    def true_loss(self) -> NDArray[np.float64]:
        """True loss of each candidate, [candidates]."""
        return np.array([self.loss(self.rows, i) for i in range(len(self.order))])


REFUSED, EXACT = -2, -1


@dataclass(frozen=True)
class SimulatedResult:
    """The result of one simulated search."""

    shipped: int
    """Index of the shipped candidate; `EXACT` = the unpruned model, `REFUSED` = no model."""
    true_loss: float


def simulated_search(
    population: Population, limit: float, rows: int, random: np.random.Generator
) -> SimulatedResult:
    """Simulate one user: draw rows, search, and look up the shipped model's true loss."""
    drawn = len(population.select.labels)
    chosen = random.integers(drawn, size=drawn)
    seen = random.integers(len(population.rows.labels), size=rows)
    world, index = population.rows, {str(p): i for i, p in enumerate(population.order)}
    dense, labels = world.dense[seen], world.labels[seen]
    task, metric = population.task, population.metric
    try:
        check(Judged(dense, labels, task, metric, "certify"), Budget(limit))
    except UsageError:
        return SimulatedResult(REFUSED, 0.0)

    def trial(pipeline: Pipeline) -> Trial:
        loss = population.loss(population.select, index[str(pipeline)], chosen)
        return Trial(pipeline, 1 - loss, loss, 0.0, 0)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        found = world.found[index[str(pipeline)], seen]
        return certify(metric, dense, found, labels, task, limit, confidence)

    safe = safe_loss(rows, limit)
    winner = search_by_bisection(
        population.order, trial, prove, limit, lambda _: False, safe=safe, rows=rows
    ).winner
    if winner is None:
        return SimulatedResult(EXACT, 0.0)
    at = index[str(winner)]
    return SimulatedResult(at, float(population.true_loss[at]))


def simulate(
    population: Population, limit: float, rows: int, users: int, seed: int = 0
) -> dict[str, Any]:
    """Simulate users.

    Returns:
        Shares of users whose budget was exceeded (`broken`), who got the unpruned model
        (`exact_only`), and whose budget was refused (`refused`); and the median true loss of
        users who got a model (None = nobody got one).
    """
    random = np.random.default_rng(seed)
    ends = [simulated_search(population, limit, rows, random) for _ in range(users)]
    served = [x.true_loss for x in ends if x.shipped != REFUSED]
    return {
        "metric": population.metric,
        "budget": limit,
        "rows": rows,
        "users": users,
        "broken": sum(x > limit for x in served) / users,
        "exact_only": sum(x.shipped == EXACT for x in ends) / users,
        "refused": 1 - len(served) / users,
        "median_true_loss": float(np.median(served)) if served else None,
    }


def record(model: str, data: str, out: Path, metric: str) -> Population:
    """Record every candidate's answers, and store them so that a killed run can continue."""
    request = Request(model=model, data=data, passes="-", metric=metric)
    opened = open_evaluator(request, parse_target("onnx"), Progress(1))
    about = key(opened.model.source["digest"], opened.data_digest, versions())
    store = Store(out.with_suffix(f".{about}.parts"))
    evaluator = replace(opened, ctx=replace(opened.ctx, store=store))
    order = evaluator.builder.by_cost(default_space("quick", 0.02, None, opened.model))

    def answers(pipeline: Pipeline, roles: Sequence[str]) -> Ints:
        found = [evaluator.predictor.predict(pipeline, role) for role in roles]
        return np.concatenate([np.asarray(x) for x in found])

    def recorded(*roles: str) -> Recorded:
        labels = [np.asarray(evaluator.predictor.rows(role).labels) for role in roles]
        found = np.stack([answers(p, roles) for p in order])
        return Recorded(found, answers(Pipeline(()), roles), np.concatenate(labels))

    world = ("certify",) if evaluator.test_rows is None else ("certify", "test")
    task = opened.model.task
    return Population(tuple(order), recorded("select"), recorded(*world), task, metric)


def study(
    population: Population, rows: Sequence[int], users: int, budgets: Sequence[float] = BUDGETS
) -> dict[str, Any]:
    """Simulate each budget and number of rows; also list the candidates' true losses."""
    return {
        "metric": population.metric,
        "candidates": [
            {"pipeline": str(p), "true_loss": float(x)}
            for p, x in zip(population.order, population.true_loss, strict=True)
        ],
        "world_rows": len(population.rows.labels),
        "entries": [simulate(population, x, n, users) for x in budgets for n in rows],
    }


def line(entry: dict[str, Any]) -> str:
    """Format one entry as a line of text."""
    median = entry["median_true_loss"]
    shown = "    -" if median is None else f"{100 * median:5.2f}"
    return (
        f"budget {100 * entry['budget']:4.1f} % {entry['rows']:5} rows: broken "
        f"{100 * entry['broken']:4.1f} %, exact only {100 * entry['exact_only']:5.1f} %, "
        f"refused {100 * entry['refused']:5.1f} %, median true loss {shown}"
    )


def main() -> None:
    """Record answers, simulate users, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 872, 2000])
    options = parser.parse_args()
    population = record(options.model, options.data, options.out, options.metric)
    found = study(population, options.rows, options.users)
    document = {"schema_version": 1, **found, **provenance()}
    options.out.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    for entry in found["entries"]:
        print(line(entry), file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
