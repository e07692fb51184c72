"""The search over pruning and mixing, on made-up losses."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.cli.opt import main
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run.plan import plan
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.accuracy_model import BilinearModel, Shape, fit
from prumux.optimizer.search.acquisition import (
    TimedCandidate,
    certification_order,
    search_by_acquisition,
)
from prumux.optimizer.search.bisection import SearchResult, Trial
from prumux.optimizer.search.shape_timing import time_candidates, varies_multiplexing
from tests.helpers import jobs

LEFT = (1.0, 0.6, 0.4, 0.2, 0.1, 0.05)
SLOTS = (1, 2, 5, 10)
ROWS = 2000
FITTED = partial(fit, rows=ROWS, ceiling=0.4)


def true_loss(shape: Shape, harder: float = 1.0) -> float:
    """Rises with pruning and with mixing, not in the form that is fitted."""
    cut = 0.002 * harder * shape.removed**3
    mix = 0.04 * harder * shape.mixing**0.8
    return float(1 - (1 - min(cut, 0.4)) * (1 - min(mix, 0.4)))


def grid(mixed: float = 1.0) -> list[TimedCandidate]:
    """Every cell; what is fixed costs a thirtieth of the dense time."""
    found = []
    for left in LEFT:
        for slots in SLOTS:
            text = f"prune{{sparsity={1 - left:g}}},slice,mux{{n={slots}}}"
            faster = 1.033 / (left / slots + 0.033)
            found.append(
                TimedCandidate(Pipeline.parse(text), Shape(left, slots, mixed), faster)
            )
    return found


@dataclass
class World:
    """Counts what is asked."""

    candidates: list[TimedCandidate]
    harder: float = 1.0
    noise: float = 0.0
    fails: Callable[[TimedCandidate], bool] = lambda _: False

    def __post_init__(self) -> None:
        self.tried: list[TimedCandidate] = []
        self.random = np.random.default_rng(0)

    def of(self, pipeline: Pipeline) -> TimedCandidate:
        return next(x for x in self.candidates if x.pipeline == pipeline)

    def loss(self, x: TimedCandidate) -> float:
        return true_loss(x.shape, self.harder)

    def trial(self, pipeline: Pipeline) -> Trial:
        x = self.of(pipeline)
        self.tried.append(x)
        if self.fails(x):
            raise PassError("out of reach", exit_code=2)
        loss = self.loss(x) + self.noise * float(self.random.standard_normal())
        return Trial(pipeline, 1 - loss, loss, 1.0, 1)

    def prove(self, pipeline: Pipeline, confidence: float) -> Certificate:
        loss = self.loss(self.of(pipeline))
        upper = loss + 0.001
        return Certificate("accuracy", 900, 1, 1 - loss, loss, upper, confidence, 9.0, "x")

    def search(self, limit: float, allowed: int = 10**6) -> SearchResult:
        def late(_: Pipeline) -> bool:
            return len(self.tried) >= allowed

        return search_by_acquisition(
            self.candidates, self.trial, self.prove, limit, late, fit=FITTED, safe=limit / 2
        )

    def regret(self, found: SearchResult, limit: float) -> float:
        """How much faster the best cell is than the one that was chosen."""
        best = max(
            (x.throughput for x in self.candidates if self.loss(x) <= limit), default=1.0
        )
        chosen = 1.0 if found.winner is None else self.of(found.winner).throughput
        return best / chosen


@pytest.mark.parametrize("harder", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("limit", [0.01, 0.02, 0.05, 0.1])
def test_finds_a_cell_near_the_best_with_few_trials(limit: float, harder: float) -> None:
    world = World(grid(), harder)
    found = world.search(limit)
    assert len(world.tried) <= len(world.candidates) / 2
    assert len(world.tried) == len({str(x.pipeline) for x in world.tried})
    assert world.regret(found, limit) < 1.25


def test_a_larger_budget_is_never_slower() -> None:
    speeds = []
    for limit in (0.005, 0.01, 0.02, 0.05, 0.1, 0.2):
        world = World(grid())
        found = world.search(limit)
        speeds.append(world.of(found.winner).throughput if found.winner else 1.0)
    assert speeds == sorted(speeds)


def test_noise_of_a_few_thousand_rows_is_borne() -> None:
    world = World(grid(), noise=0.002)
    assert world.regret(world.search(0.03), 0.03) < 1.5


def test_time_ends_it_with_what_there_is() -> None:
    world = World(grid())
    found = world.search(0.05, allowed=2)
    assert len(world.tried) == 2
    assert found.winner is None or "stopped by the time limit" in found.reason


def test_a_candidate_that_fails_is_left_out() -> None:
    world = World(grid(), fails=lambda x: x.shape.slots > 1)
    found = world.search(0.05)
    assert found.winner is not None
    assert world.of(found.winner).shape.slots == 1
    with pytest.raises(PassError, match="out of reach"):
        World(grid(), fails=lambda _: True).search(0.05)


def test_nothing_within_the_limit_says_so() -> None:
    world = World([x for x in grid() if x.shape.slots == 10])
    found = world.search(0.001)
    assert found.winner is None
    assert "above the limit 0.10%" in found.reason


def test_proofs_go_from_the_safest_to_the_fastest_and_skip_who_is_beaten() -> None:
    cells = [
        TimedCandidate(
            Pipeline.parse(f"prune{{sparsity={0.1 * i:g}}},slice"), Shape(0.5), 1.0 + i
        )
        for i in range(1, 6)
    ]
    losses = {0: 0.001, 1: 0.013, 2: 0.008, 3: 0.015, 4: 0.05}
    tried = {i: Trial(cells[i].pipeline, 1 - x, x, 1.0, 1) for i, x in losses.items()}
    assert certification_order(cells, tried, 0.02, 0.01) == [2, 3], (
        "0 is slow and 2 is safe; 2 beats 1; 4 loses"
    )
    assert certification_order(cells, {3: tried[3], 1: tried[1]}, 0.02, 0.01) == [1, 3]
    assert certification_order(cells, {4: tried[4]}, 0.02, 0.01) == []


shapes = st.builds(
    Shape,
    left=st.floats(0.02, 1.0),
    slots=st.sampled_from(SLOTS),
    mixed=st.sampled_from([0.25, 0.5, 1.0]),
)


@settings(deadline=None)
@given(st.lists(st.tuples(shapes, st.floats(-0.01, 0.5)), max_size=6), shapes, shapes)
def test_predictions_never_fall_with_pruning_or_mixing(
    seen: list[tuple[Shape, float]], a: Shape, b: Shape
) -> None:
    model = FITTED([s for s, _ in seen], [x for _, x in seen])
    worse = Shape(min(a.left, b.left), max(a.slots, b.slots), max(a.mixed, b.mixed))
    assert model.predict(worse).log_mean >= model.predict(a).log_mean - 1e-6
    assert 0 <= model.predict(a).chance(0.02) <= 1
    assert model.predict(a).chance(0.05) >= model.predict(a).chance(0.01)
    assert model.predict(a).loss <= 0.4, "nothing loses more than guessing does"
    assert model.predict(a).chance(0.4) == 1


def test_trials_narrow_what_is_believed() -> None:
    shape = Shape(0.2)
    before = FITTED([], []).predict(shape)
    after = FITTED([Shape(0.4), Shape(0.1)], [0.004, 0.03]).predict(shape)
    chance = after.chance(after.loss)
    assert chance == pytest.approx(0.5), "the median"
    assert after.log_sd < before.log_sd
    assert 0.004 < after.loss < 0.03


def test_a_loss_that_rises_at_once_is_learnt() -> None:
    """Rows are no longer told apart: half of what there is to lose."""

    def loss(shape: Shape) -> float:
        over = shape.slots >= 5 and shape.left <= 0.2
        return max(true_loss(shape), 0.35 * over)

    cells = [x.shape for x in grid(mixed=0.5)]

    def left_out(left: float, slots: int) -> float:
        one = Shape(left, slots, 0.5)
        others = [x for x in cells if x != one]
        return FITTED(others, [loss(x) for x in others]).predict(one).loss

    assert left_out(0.1, 5) > 0.2
    assert left_out(0.4, 5) < 0.08, "before it"
    assert left_out(0.1, 2) < 0.1, "beside it"


def test_bilinear_is_exact_at_corners_and_a_mean_between() -> None:
    made = BilinearModel(
        (1, 2, 5), (0.0, 0.5, 0.9), np.array([[0, 1, 4], [2, 3, 8], [5, 7, 9.0]])
    )
    assert made.predict(2, 0.5) == 3
    assert made.predict(1.5, 0.25) == pytest.approx((0 + 1 + 2 + 3) / 4)
    with pytest.raises(ValueError, match="out of bounds"):
        made.predict(10, 0.5)


def test_what_counts_as_more_than_one_dimension() -> None:
    assert not varies_multiplexing(Pipeline.space("prune{sparsity=0.4|0.6},slice"))
    assert not varies_multiplexing(
        Pipeline.space("prune{sparsity=0.4|0.6},slice,mux{n=2},distill")
    )
    assert varies_multiplexing(Pipeline.space("prune{sparsity=0.4},slice,mux{n=1|2},distill"))
    assert math.isclose(Shape(0.5, 4, 0.5).mixing, 1.0)


def test_who_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    request = Request(str(model), budget=Budget(0.3), data=str(data))
    evaluator = plan(request, Progress()).evaluator
    errors: list[Any] = []
    evaluator = evaluator.with_store(Store(tmp_path / "store"), errors.append)
    space = Pipeline.space("pool-early,mux{n=1|2 at=0|99}")
    found = time_candidates(evaluator, space)
    assert [str(x.pipeline) for x in found] == ["pool-early,mux{n=1}", "pool-early,mux{n=2}"]
    assert [x.shape.slots for x in found] == [1, 2]
    assert {x["error"].partition(" is after")[0][-5:] for x in errors} == {"at=99"}
    assert time_candidates(evaluator, space) == found, "measured once"
    with pytest.raises(PassError, match="no candidate can be made"):
        time_candidates(evaluator, Pipeline.space("mux{n=2 at=99}"))


def test_a_space_with_mixing_on_the_command_line(tmp_path: Path) -> None:
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    space = (
        "pool-early,prune{sparsity=0.2|0.5 of=macs},slice,mux{n=1|2 at=1},distill{epochs=0.2}"
    )
    out = tmp_path / "out"
    job = [str(model), "--data", str(data), "--budget", "45%", "--passes", space]
    job += ["--metric", "balanced-accuracy"]
    assert main([*job, "--out", str(out), "-q"]) in (0, 3)
    report = json.loads((out / "report.json").read_text())
    assert 1 <= len(report["trials"]) <= 4
    assert all(x["predicted_ratio"] > 0 for x in report["trials"])
    assert {x["pipeline"] for x in report["trials"]} <= {str(x) for x in Pipeline.space(space)}
    if report["met"] and report["dropped"] is None:
        assert report["pipeline"] in {x["pipeline"] for x in report["trials"]}
