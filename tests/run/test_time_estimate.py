"""What --dry-run says of the time."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.cli.opt import main
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run.plan import Plan, plan
from prumux.optimizer.run.request import Request
from prumux.optimizer.run.time_estimate import PACKAGING, PROOFS, estimate
from tests.helpers import jobs

MS = 0.001


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model")
    return {"model": str(model), "data": str(jobs.data_folder(here / "data", model))}


@pytest.fixture
def planned(job: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Plan]:
    """Plans, with one millisecond for a token, so that the counts can be checked."""
    monkeypatch.setattr("prumux.optimizer.run.time_estimate._token_s", lambda todo: MS)

    def make(**options: Any) -> Plan:
        request = Request(model=job["model"], data=job["data"], **options)
        return plan(request, Progress())

    return make


def seconds(parts: dict[str, float], words: str) -> float:
    (found,) = [v for k, v in parts.items() if words in k]
    return found


def test_one_pipeline_is_built_once(planned: Callable[..., Plan]) -> None:
    todo = planned(passes="prune{sparsity=0.5},slice,reconstruct")
    found = estimate(todo)
    parts, evaluator = found["parts_seconds"], todo.evaluator
    fit = MS * evaluator.ctx.fit.lengths.sum()
    assert seconds(parts, "building 1 of 1") == pytest.approx(2 * fit, abs=0.1)
    select = MS * evaluator.select_rows.lengths.sum()
    assert seconds(parts, "on the select rows") == pytest.approx(select, abs=0.1)
    workload = sum(b.input_ids.size for b in evaluator.ctx.workload)
    assert seconds(parts, "timing") == pytest.approx(PACKAGING * MS * workload, abs=0.1)
    assert found["seconds"] == pytest.approx(sum(parts.values()), abs=0.5)
    assert "estimate" in found["from"]


def test_a_search_halves(planned: Callable[..., Plan]) -> None:
    budget = Budget.parse("2%")
    todo = planned(budget=budget)
    parts = estimate(todo)["parts_seconds"]
    trials = math.ceil(math.log2(len(todo.space) + 1))
    assert any(f"building {trials} of {len(todo.space)}" in name for name in parts)
    certify = MS * todo.evaluator.certify_rows.lengths.sum()
    assert seconds(parts, f"{PROOFS} certificates") >= (PROOFS + 3) * certify
    assert "halving" in estimate(todo)["from"]
    limited = replace(todo, request=replace(todo.request, time_limit_s=1.0))
    assert estimate(limited)["seconds"] == 1.0
    assert "--time-limit ends the search" in estimate(limited)["from"]
    assert "--time-limit" not in estimate(todo)["from"]


def test_training_takes_what_it_is_given(planned: Callable[..., Plan]) -> None:
    todo = planned(passes="prune{sparsity=0.5},slice,distill{minutes=3}")
    assert seconds(estimate(todo)["parts_seconds"], "building") > 180
    by_epochs = [
        estimate(replace(todo, space=(Pipeline.parse(f"distill{{epochs={n}}}"),)))
        for n in (2, 4)
    ]
    first, second = (seconds(x["parts_seconds"], "building") for x in by_epochs)
    assert second == pytest.approx(2 * first, abs=0.2)
    assert first > 0


def test_a_trained_effort_takes_its_time_limit(planned: Callable[..., Plan]) -> None:
    budget = Budget.parse("2%")
    said = planned(budget=budget, effort="standard").describe()["on_top_of_the_last"]
    assert said[0].startswith("mux{n=2 at=")
    assert "on_top_of_the_last" not in planned(budget=budget).describe()
    found = estimate(planned(budget=budget, effort="standard"))
    assert found["seconds"] == 1800
    assert found["about"] == "30 min"
    found = estimate(planned(budget=budget, effort="thorough", time_limit_s=600.0))
    assert found["seconds"] == 600


def test_shapes_that_are_timed_are_not_counted_and_said(planned: Callable[..., Plan]) -> None:
    todo = planned(passes="prune{speedup=2},slice")
    assert "speedup=" in estimate(todo)["from"]


def test_dry_run_measures_and_prints_it(
    job: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([job["model"], "--data", job["data"], "--budget", "2%", "--dry-run"]) == 0
    found = json.loads(capsys.readouterr().out)["estimate"]
    assert 0 < found["seconds"] < 600
    assert found["seconds"] == pytest.approx(sum(found["parts_seconds"].values()), abs=0.5)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "report.json").write_text('{"schema_version": 1, "files": []}')
    job_there = [job["model"], "--data", job["data"], "--out", "out", "--passes", "pool-early"]
    assert main(job_there) == 2
    assert main([*job_there, "--dry-run"]) == 0, "nothing is written, so nothing is in its way"
