"""Does the budget hold? A thousand simulated searches, each compared with the true loss.

    python bench/guarantee.py MODEL --data DIR --out bench/results/NAME.json

The script records every candidate's answers on all labelled rows once. The certify and test
rows together are the population: a candidate's loss on all of them is its true loss. Each
simulated user draws certify rows from the population and select rows from the select rows,
both with replacement, and runs the search of `prumux-opt --effort quick`. The promise is
broken for a user if the true loss of the shipped model exceeds the budget. prumux promises
at most 5 % of users.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.environment import provenance, versions
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.bisection import Trial, safe_loss, search_by_bisection
from prumux.optimizer.search.presets import default_space

Bools = NDArray[np.bool_]
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Population:
    """Correctness of each candidate, and of the given model, on each row."""

    order: tuple[Pipeline, ...]
    """Candidates from the slowest to the fastest."""
    select: Bools
    """[candidates, rows]"""
    select_dense: Bools
    rows: Bools
    """[candidates, rows]; the search sees samples of these rows only."""
    rows_dense: Bools

    @property
    def true_loss(self) -> NDArray[np.float64]:
        """[candidates]"""
        found: NDArray[np.float64] = self.rows_dense.mean() - self.rows.mean(1)
        return found


@dataclass(frozen=True)
class SimulatedResult:
    """The result of one simulated search."""

    shipped: int
    """Index of the candidate; -1 = the exact model."""
    true_loss: float


def simulated_search(
    population: Population, limit: float, rows: int, random: np.random.Generator
) -> SimulatedResult:
    """Simulate one user: draw rows, search, and look up the shipped model's true loss."""
    chosen = random.integers(population.select.shape[1], size=population.select.shape[1])
    seen = random.integers(population.rows.shape[1], size=rows)
    select_loss = population.select_dense[chosen].mean() - population.select[:, chosen].mean(1)
    index = {str(p): i for i, p in enumerate(population.order)}

    def trial(pipeline: Pipeline) -> Trial:
        loss = float(select_loss[index[str(pipeline)]])
        return Trial(pipeline, 1 - loss, loss, 0.0, 0)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        dense, found = population.rows_dense[seen], population.rows[index[str(pipeline)], seen]
        worse, better = int((dense & ~found).sum()), int((~dense & found).sum())
        upper = accuracy_upper(rows, worse, better, confidence)
        loss = (worse - better) / rows
        score = float(dense.mean())
        return Certificate(
            "accuracy", rows, score, score - loss, loss, upper, confidence, limit, "tango"
        )

    safe = safe_loss(rows, limit)
    winner = search_by_bisection(
        population.order, trial, prove, limit, lambda _: False, safe=safe
    ).winner
    if winner is None:
        return SimulatedResult(-1, 0.0)
    at = index[str(winner)]
    return SimulatedResult(at, float(population.true_loss[at]))


def simulate(
    population: Population, limit: float, rows: int, users: int, seed: int = 0
) -> dict[str, float]:
    """Simulate users.

    Returns:
        The share of users whose budget was exceeded (`broken`), the share who got the exact
        model (`exact_only`), and the median true loss.
    """
    random = np.random.default_rng(seed)
    ends = [simulated_search(population, limit, rows, random) for _ in range(users)]
    broken = sum(x.true_loss > limit for x in ends)
    return {
        "budget": limit,
        "rows": rows,
        "users": users,
        "broken": broken / users,
        "exact_only": sum(x.shipped < 0 for x in ends) / users,
        "median_true_loss": float(np.median([x.true_loss for x in ends])),
    }


def record(options: argparse.Namespace) -> Population:
    """Every candidate's answers, kept beside the result so that a killed run can continue."""
    request = Request(model=options.model, data=options.data, passes="-")
    opened = open_evaluator(request, parse_target("onnx"), Progress(1))
    about = key(opened.model.source["digest"], opened.data_digest, versions())
    store = Store(options.out.with_suffix(f".{about}.parts"))
    evaluator = replace(opened, ctx=replace(opened.ctx, store=store))
    order = evaluator.builder.by_cost(default_space("quick", 0.02, None, opened.model))

    def right(pipeline: Pipeline, roles: Sequence[str]) -> Bools:
        found = [evaluator.predictor.with_labels(pipeline, role) for role in roles]
        return np.concatenate([np.asarray(a) == np.asarray(b) for a, b in found])

    world = ("certify",) if evaluator.test_rows is None else ("certify", "test")
    dense = Pipeline(())
    return Population(
        tuple(order),
        np.stack([right(p, ("select",)) for p in order]),
        right(dense, ("select",)),
        np.stack([right(p, world) for p in order]),
        right(dense, world),
    )


def main() -> None:
    """Record, simulate, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rows", type=int, nargs="+", default=[300, 872, 2000])
    options = parser.parse_args()
    population = record(options)
    entries: list[dict[str, Any]] = [
        simulate(population, limit, rows, options.users)
        for limit in BUDGETS
        for rows in options.rows
    ]
    found = {
        "schema_version": 1,
        "candidates": [
            {"pipeline": str(p), "true_loss": float(x)}
            for p, x in zip(population.order, population.true_loss, strict=True)
        ],
        "world_rows": population.rows.shape[1],
        "entries": entries,
        **provenance(),
    }
    options.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for x in entries:
        line = f"budget {100 * x['budget']:4.1f} % {x['rows']:5} rows: broken "
        line += f"{100 * x['broken']:4.1f} %, exact only {100 * x['exact_only']:5.1f} %, "
        line += f"median true loss {100 * x['median_true_loss']:5.2f}"
        print(line, file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
