"""When a lower precision is used, and that its own answers are what counts then."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.cli.opt import main
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.search import precision_choice as lower
from prumux.optimizer.search.bisection import Trial
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.search.precision_choice import choose_precision, exact_only
from tests.helpers import jobs
from tests.helpers.checkpoints import config

LARGE = config(
    vocab_size=101,
    max_position_embeddings=40,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
)


@dataclass(frozen=True)
class Given:
    """As much of a evaluator as the decision needs."""

    model: Any
    ctx: Any
    target: Target
    losses: dict[bool, float] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()

    @property
    def builder(self) -> Any:
        return SimpleNamespace(by_cost=list, build=str)

    def dense_score(self, role: str, target: Target | None = None) -> float:
        assert role == "select"
        return 0.9 - (self.losses[target.exact] if target else 0.0)


SPACED = tuple(Pipeline.parse(f"prune{{sparsity=0.{i}}},slice") for i in (1, 2, 3, 4))


def decided(  # noqa: PLR0917 - a fixture by another name
    gain: float,
    loss: float,
    monkeypatch: pytest.MonkeyPatch,
    store: Store,
    last: tuple[int, int] = (0, 0),
    cut_gain: float = 0.0,
) -> list[str]:
    """Texts of what a budget of two points is kept on, and of what is timed beside it.

    Args:
        gain: of the lower precision with the given model.
        loss: of it, on the select rows.
        monkeypatch: replaces the timing.
        store: of the run.
        last: how many of four candidates keep the budget, exactly and in lower precision.
        cut_gain: throughput of the last of these in lower precision over the exact one.
    """
    timed: list[Any] = []

    def timing(evaluator: Any, before: Any, after: Any) -> float:
        timed.append((before[1], after[1]))
        return gain if len(timed) == 1 else cut_gain

    def trial(evaluator: Any, pipeline: Pipeline) -> Trial:
        keeps = last[not evaluator.targets[0].exact]
        lost = 0.01 if SPACED.index(pipeline) < keeps else 0.03
        return Trial(pipeline, 0.9 - lost, lost, 1.0, 1)

    monkeypatch.setattr(lower, "_gain", timing)
    monkeypatch.setattr(Given, "trial", trial, raising=False)
    encoder = SimpleNamespace(hidden=64)
    ctx = SimpleNamespace(arrivals="sorted", progress=Progress(), store=store, costs=None)
    target = parse_target("onnx")
    monkeypatch.setattr(type(target), "tuned", lambda self, model, ctx: self)
    evaluator: Any = Given(SimpleNamespace(encoder=encoder), ctx, target, {False: loss})
    found: Evaluator = choose_precision(evaluator, 0.02, SPACED if any(last) else ())
    if len(timed) == 2:
        built = [str(SPACED[x - 1]) if x else "pool-early" for x in last]
        assert timed[1] == tuple(built), "the fastest of each that keeps the budget"
    return [str(x) for x in found.targets]


INT8 = "onnx{precision=int8}"


@pytest.mark.parametrize(
    ("gain", "loss", "expected"),
    [
        (2.0, 0.003, [INT8, "onnx{precision=fp32}"]),
        (1.05, 0.0, ["onnx{precision=fp32}"]),  # not fast enough
        (2.0, 0.021, ["onnx{precision=fp32}"]),  # more than the budget
    ],
)
def test_what_pays_is_used(
    gain: float, loss: float, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decided(gain, loss, monkeypatch, Store()) == expected


@pytest.mark.parametrize(
    ("last", "cut_gain", "used"),
    [((3, 2), 1.3, True), ((4, 1), 0.8, False), ((3, 0), 1.1, True), ((0, 1), 2.0, True)],
)
def test_a_precision_that_loses_much_competes(
    last: tuple[int, int], cut_gain: float, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = decided(2.0, 0.006, monkeypatch, Store(), last, cut_gain)
    assert found == [INT8, "onnx{precision=fp32}"][not used :]


def test_a_resumed_run_goes_on_with_what_was_decided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    assert decided(2.0, 0.0, monkeypatch, store)[0] == INT8
    assert decided(0.5, 0.9, monkeypatch, store)[0] == INT8


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model", LARGE)
    return [str(model), "--data", str(jobs.data_folder(here / "data", model))]


SPACE = "pool-early,prune{sparsity=0.1|0.3|0.5 of=macs},slice,reconstruct"


def run(job: list[str], out: Path, *options: str) -> dict[str, Any]:
    """The report of a run that found something."""
    assert main([*job, "--out", str(out), "-q", *options]) == 0
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def test_int8_is_scored_by_its_engine_and_shipped(job: list[str], tmp_path: Path) -> None:
    report = run(
        job,
        tmp_path / "out",
        "--budget",
        "30%",
        "--passes",
        SPACE,
        "--target",
        INT8,
    )
    if report["dropped"] is None:
        assert report["engine"]["precision"] == "int8"
        assert report["target"] == INT8
        assert report["export"]["optimised"]["lowered"] > 0
    assert {x["target"] for x in report["beside"]} >= {INT8}, "dense int8 is timed as well"
    assert report["facts"]["target"] == INT8


def test_auto_ships_what_was_certified_and_times_the_exact_engine_beside_it(
    job: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lower, "_gain", lambda evaluator, exact, other: 2.0)
    monkeypatch.setattr(lower, "SHARE", 1.0)
    report = run(job, tmp_path / "out", "--budget", "40%", "--passes", SPACE)
    timed = [(x["pipeline"], x["throughput_ratio"]) for x in report["beside"]]
    same = [gain for pipeline, gain in timed if pipeline == report["pipeline"]]
    assert len(timed) == 2
    if report["dropped"] is None:
        assert report["target"] == INT8
        assert len(same) == 1


def test_the_lower_precision_by_itself_is_a_candidate(job: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    tight = [*job, "--budget", "0.1%", "--target", INT8, "--out", str(out), "-q"]
    assert main(tight) in (0, 3)
    report = json.loads((out / "report.json").read_text())
    assert "pool-early" in {x["pipeline"] for x in report["trials"]}


def test_without_a_budget_nothing_is_lowered_unasked(job: list[str], tmp_path: Path) -> None:
    passes = "prune{sparsity=0.5 of=macs},slice"
    report = run(job, tmp_path / "a", "--passes", passes)
    assert report["engine"]["precision"] == "fp32"
    assert report["beside"] == []
    report = run(job, tmp_path / "b", "--budget", "0%")
    assert report["engine"]["precision"] == "fp32"


def test_nothing_may_be_lost_means_exact_targets_only() -> None:
    ctx = SimpleNamespace(arrivals="sorted", store=Store())
    evaluator: Any = Given(None, ctx, parse_target(INT8))
    assert [x.exact for x in exact_only(evaluator).targets] == [True]
