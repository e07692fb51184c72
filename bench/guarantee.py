"""Does the budget hold? Compare a thousand simulated searches with the true loss.

    python bench/guarantee.py MODEL --data DIR --out bench/results/NAME.json

The script records every candidate's answers on all labelled rows once. The certify and test
rows together are the population: a candidate's loss on the whole population is its true loss.
Each simulated user draws certify rows from the population and select rows from the data's
select rows, both with replacement. Then the user runs the checks and the search of `prumux-opt
--effort quick`, with cascades and without the bag of embeddings. The promise is broken for a
user if the true loss of the shipped model exceeds the budget. prumux promises that at most 5 %
of users get such a model. If the checks refuse a user's budget, the user gets no model.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
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
from prumux.optimizer.model.cascade import threshold_at
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.choose import CASCADES
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.bisection import Trial, safe_loss, search_by_bisection
from prumux.optimizer.search.cascades import (
    CascadeOption,
    Stage,
    best_cascades,
    cascade_options,
)
from prumux.optimizer.search.presets import default_space, exact_pipeline
from prumux.optimizer.search.unseen_loss import (
    GivenAnswers,
    LossEstimate,
    estimate_loss,
    unseen_weights,
)
from prumux.optimizer.tasks.task import Task

Ints = NDArray[np.int64]
Floats = NDArray[np.floating[Any]]
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1)


@dataclass(frozen=True, eq=False)
class Recorded:
    """Answers of each candidate and of the given model on labelled rows."""

    found: Ints
    """Answers of the candidates, [candidates, rows]."""
    dense: Ints
    labels: Ints
    margins: Floats
    """Margins of the candidates, [candidates, rows]."""
    dense_margins: Floats

    def given(self, chosen: Ints) -> GivenAnswers:
        """The given model's answers to the chosen rows."""
        right = self.dense[chosen] == self.labels[chosen]
        return GivenAnswers(self.dense_margins[chosen], right)


@dataclass(frozen=True, eq=False)
class Population:
    """The answers of every candidate on each row."""

    order: tuple[Pipeline, ...]
    """Candidates from the slowest to the fastest."""
    macs: tuple[int, ...]
    """Multiply-adds of each candidate for one row."""
    select: Recorded
    rows: Recorded
    """Numbers of the population's rows. The search only sees samples of them."""
    task: Task
    metric: str = "accuracy"

    def true_loss(self, answers: Ints) -> float:
        """Score of the given model minus that of answers to all rows of the population."""
        before, after = (
            self.task.score(self.metric, x, self.rows.labels)
            for x in (self.rows.dense, answers)
        )
        return before - after

    @cached_property
    def true_losses(self) -> NDArray[np.float64]:
        """True loss of each candidate, [candidates]."""
        return np.array([self.true_loss(x) for x in self.rows.found])


CANDIDATE, CASCADE, EXACT, REFUSED = range(4)


@dataclass(frozen=True)
class SimulatedResult:
    """The result of one simulated search."""

    shipped: int
    """`CANDIDATE`, `CASCADE`, `EXACT` (the unpruned model) or `REFUSED` (no model)."""
    true_loss: float


@dataclass(eq=False)
class SimulatedSearch:
    """One user's search, with drawn select and certify rows."""

    population: Population
    limit: float
    chosen: Ints
    """The drawn select rows."""
    seen: Ints
    """The drawn certify rows."""

    def __post_init__(self) -> None:
        population = self.population
        select, world = population.select, population.rows
        self.index = {p: i for i, p in enumerate(population.order)}
        self.weights = unseen_weights(select.given(self.chosen), world.given(self.seen))
        self.dense, self.labels = select.dense[self.chosen], select.labels[self.chosen]
        self.cascades: dict[Pipeline, CascadeOption] = {}

    def estimate(self, answers: Any) -> LossEstimate:
        """The expected loss of answers to the select rows."""
        task, metric = self.population.task, self.population.metric
        return estimate_loss(task, metric, self.dense, answers, self.labels, self.weights)

    def trial(self, pipeline: Pipeline) -> Trial:
        """The trial of a candidate."""
        option = self.cascades.get(pipeline)
        if option is not None:
            found, macs = option.estimate, round(option.macs)
        else:
            i = self.index[pipeline]
            found = self.estimate(self.population.select.found[i][self.chosen])
            macs = self.population.macs[i]
        loss, rows = found.loss, found.rows
        return Trial(
            pipeline, 1 - loss, loss, 0.0, macs, changed=found.changed, estimate_rows=rows
        )

    def extend(self, tried: Sequence[Trial], most_macs: float | None) -> list[Pipeline]:
        """The cascades that `quick` would try."""
        options = cascade_options([*map(self.stage, tried)], self.weights, self.estimate)
        most = math.inf if most_macs is None else most_macs
        best = best_cascades(options, tried, self.limit, len(self.seen), CASCADES, most)
        self.cascades = {x.pipeline: x for x in best}
        return [*self.cascades]

    def stage(self, trial: Trial) -> Stage:
        """A tried candidate as a stage of a cascade."""
        i, select = self.index[trial.pipeline], self.population.select
        margins = np.asarray(select.margins[i][self.chosen], np.float32)
        return Stage(trial.pipeline, trial.macs, select.found[i][self.chosen], margins)

    def answers(self, pipeline: Pipeline) -> Ints:
        """Answers to all rows of the population."""
        world, option = self.population.rows, self.cascades.get(pipeline)
        if option is None:
            single: Ints = world.found[self.index[pipeline]]
            return single
        first, second = (self.index[x.pipeline] for x in (option.first, option.second))
        below = world.margins[first] < threshold_at(option.first.margins, option.share)
        found: Ints = np.where(below, world.found[second], world.found[first])
        return found

    def certify(self, pipeline: Pipeline, confidence: float) -> Certificate:
        """The certificate of a candidate."""
        world, task = self.population.rows, self.population.task
        found, dense = self.answers(pipeline)[self.seen], world.dense[self.seen]
        labels, metric = world.labels[self.seen], self.population.metric
        return certify(metric, dense, found, labels, task, self.limit, confidence)


def simulated_search(
    population: Population, limit: float, rows: int, random: np.random.Generator
) -> SimulatedResult:
    """Simulate one user: draw rows, search, and look up the shipped model's true loss."""
    drawn = len(population.select.labels)
    chosen = random.integers(drawn, size=drawn)
    seen = random.integers(len(population.rows.labels), size=rows)
    dense, labels = population.rows.dense[seen], population.rows.labels[seen]
    try:
        judged = Judged(dense, labels, population.task, population.metric, "certify")
        check(judged, Budget(limit))
    except UsageError:
        return SimulatedResult(REFUSED, 0.0)
    user = SimulatedSearch(population, limit, chosen, seen)
    winner = search_by_bisection(
        population.order,
        user.trial,
        user.certify,
        limit,
        lambda _: False,
        safe=safe_loss(rows, limit),
        rows=rows,
        extend=user.extend,
    ).winner
    if winner is None:
        return SimulatedResult(EXACT, 0.0)
    kind = CASCADE if winner in user.cascades else CANDIDATE
    return SimulatedResult(kind, population.true_loss(user.answers(winner)))


def simulate(
    population: Population, limit: float, rows: int, users: int, seed: int = 0
) -> dict[str, Any]:
    """Simulate users.

    Returns:
        Shares of users whose budget was exceeded (`broken`), who got the unpruned model
        (`exact_only`), who got a cascade (`cascade`), and whose budget was refused
        (`refused`); and the median true loss of users who got a model (None = nobody did).
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
        "cascade": sum(x.shipped == CASCADE for x in ends) / users,
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
    space = (exact_pipeline(), *default_space("quick", 0.02, None, opened.model))
    order = evaluator.builder.by_cost(space)
    predictor = evaluator.predictor

    def joined(one: Callable[[Pipeline, str], Any], p: Pipeline, roles: Sequence[str]) -> Any:
        return np.concatenate([np.asarray(one(p, role)) for role in roles])

    def recorded(*roles: str) -> Recorded:
        dense, labels = Pipeline(()), [np.asarray(predictor.rows(x).labels) for x in roles]
        return Recorded(
            np.stack([joined(predictor.predict, p, roles) for p in order]),
            joined(predictor.predict, dense, roles),
            np.concatenate(labels),
            np.stack([joined(predictor.margins, p, roles) for p in order]),
            joined(predictor.margins, dense, roles),
        )

    world = ("certify",) if evaluator.test_rows is None else ("certify", "test")
    task = opened.model.task
    macs = tuple(evaluator.builder.cost(p).macs for p in order)
    return Population(tuple(order), macs, recorded("select"), recorded(*world), task, metric)


def study(
    population: Population, rows: Sequence[int], users: int, budgets: Sequence[float] = BUDGETS
) -> dict[str, Any]:
    """Simulate each budget and number of rows; also list the candidates' true losses."""
    return {
        "metric": population.metric,
        "candidates": [
            {"pipeline": str(p), "true_loss": float(x)}
            for p, x in zip(population.order, population.true_losses, strict=True)
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
        f"cascade {100 * entry['cascade']:5.1f} %, "
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
