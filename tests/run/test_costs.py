"""`prumux-opt --costs`: another machine's times choose, and both machines are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prumux.export.tensorrt import TensorRt
from prumux.optimizer.cli.opt import main
from prumux.optimizer.report.encoding import report_of
from prumux.optimizer.report.html import render
from prumux.optimizer.report.terminal import summary
from prumux.optimizer.timing import calibration
from tests.helpers import jobs
from tests.helpers.costs import costs_file, linear

FP32 = "onnx{precision=fp32}"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with data, and costs of two made-up machines."""
    return job_of(tmp_path_factory.mktemp("costs"))


def job_of(here: Path, **sizes: int) -> Path:
    model = jobs.model_folder(here / "model", jobs.CONFIG | sizes)
    jobs.data_folder(here / "data", model)
    both = {"tensorrt{flavor=rtx}": linear(0.1, 0.01)}
    costs_file(here / "heads.json", model, {FP32: linear(1.0, 1e-6, 0.1), **both})
    costs_file(here / "units.json", model, {FP32: linear(1e-6, 0.1, 0.1)})
    return here


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be timed for the search."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("shapes were timed here")

    monkeypatch.setattr(calibration, "_opened", refuse)


def opt(job: Path, *more: str, out: str = "out", costs: str = "heads") -> int:
    args = [str(job / "model"), "--data", str(job / "data"), "-q", "--out", str(job / out)]
    return main([*args, "--costs", str(job / f"{costs}.json"), *more])


def report(job: Path, out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((job / out / "report.json").read_text(encoding="utf-8"))
    return found


def test_each_machine_gets_the_shape_that_is_fast_there(job: Path) -> None:
    for costs in ("heads", "units"):
        passes = ("--passes", "prune{speedup=2},slice", "--force")
        assert opt(job, *passes, out=costs, costs=costs) == 0
        record = report(job, costs)["costs"]
        assert record["throughput_ratio"] == pytest.approx(2, rel=0.15)
        assert record["throughput_ratio"] == record["dense_ms"] / record["chosen_ms"]
        assert record["measured_on"]["gpu"] == "Serving GPU"
    heads, units = (report(job, x)["layers"] for x in ("heads", "units"))
    assert sum(heads["heads"]) < 12
    assert sum(heads["ffn"]) == 3 * 64
    assert sum(units["heads"]) == 12
    assert sum(units["ffn"]) < 3 * 64
    both = report_of(report(job, "heads"), "report.json")
    assert both.serving.batch == 8
    assert both.serving.length == 16
    text = "\n".join(summary(both, Path("out")))
    assert "x the dense throughput on Serving GPU, Serving CPU, by heads.json" in text
    assert "not measured" in text
    assert f"searched   on {both.device['cpu']}" in text
    page = render(both)
    assert "estimated for Serving GPU, Serving CPU by heads.json, not measured" in page
    assert "All other times and throughputs on this page were measured there" in page


def test_a_search_is_steered_by_the_file(job: Path) -> None:
    space = "prune{sparsity=0.2|0.5 of=macs},slice,mux{n=1|2},reconstruct"
    assert opt(job, "--budget", "30%", "--passes", space, "--force", out="search") in (0, 3)
    found = report(job, "search")
    ratios = {x["pipeline"]: x["predicted_ratio"] for x in found["trials"]}
    assert ratios
    assert all(x is not None and x > 1 for x in ratios.values())
    lines = (job / "search" / "trials.jsonl").read_text(encoding="utf-8")
    assert "Traceback" not in lines


@pytest.mark.parametrize(("int8", "used"), [(0.5, True), (0.99, False), (None, False)])
def test_a_precision_is_used_if_it_pays_on_the_other_machine(
    tmp_path: Path, int8: float | None, used: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some 64 hidden dimensions are the fewest that int8 is considered for."""
    model = jobs.model_folder(
        tmp_path / "model",
        {**jobs.CONFIG, "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128},
    )
    jobs.data_folder(tmp_path / "data", model)
    dense = linear(1.0, 0.01)
    targets = {FP32: dense}
    if int8 is not None:
        targets["onnx{precision=int8}"] = lambda e: int8 * dense(e)
    costs_file(tmp_path / "heads.json", model, targets)
    args = [str(model), "--data", str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    passes = ["--budget", "20%", "--passes", "prune{sparsity=0.05|0.1 of=macs},slice"]
    assert main([*args, *passes, "--costs", str(tmp_path / "heads.json")]) in (0, 3)
    said = capsys.readouterr().err
    if int8 is None:
        assert "not used, '" in said
        assert "holds no times of onnx{precision=int8}" in said
    else:
        assert f"{1 / int8:.2f}x with the given model" in said
        assert ("at least 1.1x are needed" in said) != used


def test_what_the_machine_would_slow_down_is_dropped(job: Path, tmp_path: Path) -> None:
    """By its costs, whatever the clock here says."""
    slow = tmp_path / "slow.json"
    mixed = linear(1.0, 0.01)
    costs_file(slow, job / "model", {FP32: lambda e: mixed(e) * (9 if e.mux else 1)})
    args = [str(job / "model"), "--data", str(job / "data"), "-q", "--out", str(job / "drop")]
    passes = ["--passes", "mux{n=2}", "--costs", str(slow), "--force"]
    assert main([*args, *passes]) == 0
    found = report(job, "drop")
    assert found["pipeline"] == ""
    assert found["dropped"]["pipeline"] == "mux{n=2}"
    assert found["costs"]["throughput_ratio"] < 1
    text = "\n".join(summary(report_of(found, "report.json"), Path("out")))
    assert "slower than the dense engine by its costs" in text


def test_a_dry_run_says_that_costs_are_used(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert opt(job, "--budget", "5%", "--dry-run") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["costs"]["file"] == "heads.json"
    assert plan["costs"]["measured_on"]["cpu"] == "Serving CPU"
    assert plan["costs"]["use"] == "candidates are timed by this file, not on this machine"
    assert plan["serving"]["batch"] == 8
    assert plan["serving"]["length"] == 16


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--batch", "32"], "serving.batch is 8, --batch is 32"),
        (["--length", "20"], "serving.length is 16, --length is 20"),
        (["--target", "onnx{precision=int8}"], "targets has no onnx{precision=int8}"),
        (
            ["--target", "tensorrt{precision=bf16 flavor=rtx}"],
            "or choose for what was: --target",
        ),
    ],
)
def test_costs_of_something_else_are_refused(
    job: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert opt(job, "--budget", "5%", "--dry-run", *more) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "heads.json" in error
    assert "--measure-costs heads.json MODEL --batch" in error


def test_costs_of_another_model_are_refused(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = jobs.model_folder(tmp_path / "other", {**jobs.CONFIG, "intermediate_size": 48})
    costs_file(job / "other.json", other, {FP32: linear(1.0, 0.01)})
    assert opt(job, "--budget", "5%", "--dry-run", costs="other") == 2
    assert "other.json': model.layers is encoder{" in capsys.readouterr().err
    assert opt(job, "--budget", "5%", "--dry-run", costs="none") == 2
    assert "none.json' cannot be read: no such file" in capsys.readouterr().err


def test_a_resumed_run_notices_other_costs(
    job: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = ("--passes", "prune{speedup=2},slice")
    assert opt(job, *passes, "--force", out="resume") == 0
    assert opt(job, *passes, "--resume", out="resume") == 0
    assert opt(job, *passes, "--resume", out="resume", costs="units") == 2
    assert "had another costs\ncosts: then" in capsys.readouterr().err


def test_without_costs_cpu_time_chooses_for_a_gpu_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if TensorRt(flavor="rtx").runs_here:
        pytest.skip("an engine runs here")
    pytest.importorskip("tensorrt_rtx_bindings")
    monkeypatch.undo()
    job = job_of(tmp_path, num_hidden_layers=1)  # the time of a build is that of its layers
    out = job / "rtx"
    target = "tensorrt{flavor=rtx}"
    args = [str(job / "model"), "--data", str(job / "data"), "--passes", "pool-early"]
    assert main([*args, "--target", target, "--out", str(out), "--force"]) == 0
    said = "candidates were chosen, and all times measured, on this CPU"
    assert any(said in x for x in report(job, "rtx")["warnings"])
    shown = capsys.readouterr()
    assert f"the engine of {target} cannot be timed here" in shown.out
    assert "candidates are timed on this CPU" in shown.err
    assert opt(job, "--passes", "pool-early", "--target", target, "--force", out="rtx") == 0
    assert not any(said in x for x in report(job, "rtx")["warnings"])
