"""`bench/gpu.py` on the CPU with tiny sizes: all parts, results kept, runs that go on."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from prumux.optimizer.cli.opt import main as opt
from prumux.optimizer.timing.cost_file import read_costs
from tests.helpers import jobs
from tests.helpers.costs import costs_file, linear
from tests.helpers.scripts import script

GPU = script("gpu")  # from here on its parts can be imported
LIMIT = 16 << 20


def part(name: str) -> Any:
    """A module of `bench/gpu_parts/`."""
    return importlib.import_module(f"bench.gpu_parts.{name}")


def work(folder: Path, seconds: float = 600.0, **options: Any) -> Any:
    return part("work").Work(folder, time.monotonic() + seconds, {"name": "test"}, **options)


def tiny(**options: Any) -> Any:
    sizes = {**GPU.TINY, "precision": "fp32", "matrix": 64, "seconds": 0.01}
    return part("engines").Plan(device="cpu", **{**sizes, **options})


def test_a_gpu_or_exit_code_5(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        GPU.main(["--work", str(tmp_path / "work")])
    assert ended.value.code == 5
    said = capsys.readouterr().err
    assert "sees no device" in said
    assert "--device cpu --tiny" in said
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--minutes", "0"], "--minutes is 0"),
        (["--minutes", "nan"], "--minutes is nan"),
        (["--parts", "ax"], "takes letters of abcd"),
        (["--parts", ""], "takes letters of abcd"),
        (["--model", "m"], "--model and --data belong together"),
        (["--cell-minutes", "0"], "--cell-minutes must be above 0"),
    ],
)
def test_wrong_options_are_refused(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        GPU.main(["--device", "cpu", *args])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_engines_are_measured_once_and_hold_parity(tmp_path: Path) -> None:
    plan = tiny()
    part("engines").run(plan, work(tmp_path))
    results = {x["name"]: x for x in work(tmp_path).results("a") if "points" in x}
    assert len(results) == len(plan.items()) == 8
    for x in results.values():
        assert x["parity"]["holds"]
        assert 0 < x["parity"]["max_abs_diff"] < x["parity"]["limit"]
        assert [p["batch"] for p in x["points"]] == [max(1, x["n"]), 8]
        assert all(p["rows_per_second"] > 0 and p["ceiling_share"] > 0 for p in x["points"])
        assert x["facts"] == {"name": "test"}
        assert (x["layers"] == [[4, 64]] * 2) == (x["sparsity"] == 0)
    before = {x: x.read_bytes() for x in tmp_path.glob("a-tiny*")}
    part("engines").run(plan, work(tmp_path))
    assert {x: x.read_bytes() for x in tmp_path.glob("a-tiny*")} == before
    shown = "\n".join(part("table").lines(work(tmp_path)))
    assert shown.count("within 0.001") == 8
    assert "1.00x" in shown


def test_the_most_valuable_engines_come_first() -> None:
    plan = part("engines").Plan(device="cuda")
    items = plan.items()
    assert items[0] == ("minilm", 0.0, 1, "rtx")
    assert items[4] == ("bert-base", 0.0, 1, "rtx")
    assert len(items) == len(set(items)) == 16 * 2 * 4 + 2
    compiled = [i for i, x in enumerate(items) if x[3] == "torch-compile"]
    assert compiled == [32, 33]
    assert plan.sizes("torch-compile") == (512,)
    cells = {(s, n) for _, s, n, _ in items}
    assert cells == {(s, n) for s in (0.0, 0.6, 0.8, 0.95) for n in (1, 2, 5, 10)}


def test_time_that_is_over_leaves_the_rest_for_the_next_run(tmp_path: Path) -> None:
    plan = tiny(cells=((0.0, 1),))
    part("engines").run(plan, work(tmp_path, seconds=0))
    assert not list(tmp_path.glob("a-tiny*"))
    name = "a-tiny-0-1-ort-cpu"
    work(tmp_path).keep(name, {"points": [], "unfinished": True})
    part("engines").run(plan, work(tmp_path))
    found = work(tmp_path).read(name)
    assert len(found["points"]) == 2
    assert "unfinished" not in found


def test_an_item_that_is_cut_off_keeps_its_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, cut = part("engines"), work(tmp_path, seconds=60)
    once = engines.Item.point

    def late(self: Any, *args: Any) -> Any:
        object.__setattr__(cut, "ends", time.monotonic() - 1)
        return once(self, *args)

    monkeypatch.setattr(engines.Item, "point", late)
    plan = tiny(cells=((0.0, 1),))
    engines.run(plan, cut)
    found = work(tmp_path).read("a-tiny-0-1-ort-cpu")
    assert found["unfinished"]
    assert len(found["points"]) == 1
    assert not work(tmp_path).done("a-tiny-0-1-ort-cpu")


def test_a_failure_is_kept_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines = part("engines")
    once = engines.Item.open

    def broken(self: Any, *args: Any) -> Any:
        if self.kind == "ort-cpu":
            raise RuntimeError("CUDA error: no kernel image\nmore")
        return once(self, *args)

    monkeypatch.setattr(engines.Item, "open", broken)
    engines.run(tiny(cells=((0.0, 1),)), work(tmp_path))
    found = work(tmp_path)
    assert found.read("a-tiny-0-1-ort-cpu")["failed"] == (
        "RuntimeError: CUDA error: no kernel image"
    )
    assert found.read("a-tiny-0-1-torch")["points"]
    assert found.done("a-tiny-0-1-ort-cpu")
    assert not work(tmp_path, retry=True).done("a-tiny-0-1-ort-cpu")
    shown = "\n".join(part("table").lines(found))
    assert "a-tiny-0-1-ort-cpu: RuntimeError: CUDA error: no kernel image" in shown


def test_engines_that_are_not_here_are_named(tmp_path: Path) -> None:
    absent = part("engines").missing("cuda", "fp16")
    if not torch.cuda.is_available():
        assert set(absent) == {"rtx", "ort-cuda", "tensorrt"}
    work(tmp_path).keep("a-missing", {"missing": {"rtx": "TensorRT for RTX is not installed"}})
    shown = "\n".join(part("table").lines(work(tmp_path)))
    assert "not here: rtx: TensorRT for RTX is not installed" in shown


def test_no_file_is_too_large_to_bring_home(tmp_path: Path) -> None:
    from prumux.optimizer.base.errors import UsageError

    with pytest.raises(UsageError, match="are allowed"):
        work(tmp_path).keep("a-large", {"text": "x" * LIMIT})
    assert not list(tmp_path.iterdir())


def test_costs_are_measured_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = part("commands")
    asked = list[list[str]]()

    def call(module: str, arguments: list[str], seconds: float, log: Path) -> int:
        asked.append(arguments)
        assert module == commands.BENCH
        assert (
            json.loads((Path(arguments[2]) / "config.json").read_text())["hidden_size"] == 32
        )
        made = costs_file(
            Path(arguments[1]),
            arguments[2],
            {"onnx{precision=fp32}": linear(1, 0.1)},
            batch=8,
            length=16,
        )
        return int(not made.exists())

    monkeypatch.setattr(commands, "call", call)
    costs = commands.Costs("cpu", ("tiny",), 8, 16)
    costs.run(work(tmp_path))
    assert [x[x.index("--mix") + 1] for x in asked] == ["none", "2,5,10"]
    assert read_costs(tmp_path / "costs-tiny-ort-cpu-mixed.json").batch == 8
    costs.run(work(tmp_path))
    assert len(asked) == 2
    shown = "\n".join(part("table").lines(work(tmp_path)))
    assert "costs-tiny-ort-cpu-single.json" in shown


def test_a_command_that_takes_too_long_is_stopped(tmp_path: Path) -> None:
    commands, log = part("commands"), tmp_path / "log.txt"
    start = time.monotonic()
    with pytest.raises(commands.OverTimeError, match="stopped after 1 s"):
        commands.call("http.server", ["0", "--bind", "127.0.0.1"], 1.0, log)
    assert time.monotonic() - start < 30
    assert commands.call("json.tool", ["--help"], 60, log) == 0
    assert "usage" in log.read_text(encoding="utf-8")
    assert commands.call("json.tool", [str(tmp_path / "none")], 60, log) != 0
    assert "none" in commands.last_lines(log)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("gpu")
    jobs.data_folder(here / "data", jobs.model_folder(here / "model"))
    return here


def test_budgets_leave_their_reports_and_no_engines(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = part("commands")

    def call(module: str, arguments: list[str], seconds: float, log: Path) -> int:
        assert module == commands.OPT  # here, because a new process takes long to start
        return opt([*arguments, "-q"])

    monkeypatch.setattr(commands, "call", call)
    given = ("cpu", str(job / "model"), str(job / "data"), 60.0, tmp_path / "scratch")
    budgets = commands.Budgets(*given, effort="quick")
    kept = tmp_path / "work"
    kept.mkdir()
    budgets.run(work(kept))
    for budget in ("2", "5"):
        found = work(kept).read(f"c-{budget}-ort-cpu")
        assert found["exit_code"] in (0, 3), found
        report = kept / f"report-c-{budget}-ort-cpu-report.json"
        assert json.loads(report.read_text(encoding="utf-8"))["budget"] == f"{budget}%"
    assert not list(kept.rglob("*.onnx"))
    shown = "\n".join(part("table").lines(work(kept)))
    assert "c. budgets, run on this device" in shown


def test_the_study_trains_scores_and_times_each_cell(job: Path, tmp_path: Path) -> None:
    study = part("study")
    task = study.StudyTask("given", str(job / "model"), str(job / "data"))
    asked = study.Study("cpu", (task,), 1, 0.01, 8, 16, sparsities=(0.6,), mixed=(1, 2))
    asked.run(work(tmp_path, seconds=0))
    assert not list(tmp_path.iterdir())
    asked.run(work(tmp_path))
    cells = work(tmp_path).results("d")
    assert [(x["sparsity"], x["n"]) for x in cells] == [(0.6, 1), (0.6, 2)]
    for x in cells:
        assert 0 <= x["score"] <= x["score_dense"] == 1
        assert x["throughput_ratio"] > 0
        assert x["rows"] == "test"
    before = {x: x.read_bytes() for x in tmp_path.iterdir()}
    asked.run(work(tmp_path))
    assert {x: x.read_bytes() for x in tmp_path.iterdir()} == before


def cell(task: str, shape: tuple[float, int, int], score: float, ratio: float) -> Any:
    return {
        "task": task,
        **dict(zip(("sparsity", "n", "seed"), shape, strict=True)),
        "score": score,
        "score_dense": 0.84,
        "throughput_ratio": ratio,
        "rows_per_second": 100 * ratio,
    }


def test_the_fastest_cell_at_each_accuracy_of_mnli(tmp_path: Path) -> None:
    study = part("study")
    cells = [
        cell("mnli", (0.6, 1, 0), 0.81, 2.0),
        cell("mnli", (0.6, 1, 1), 0.80, 2.2),
        cell("mnli", (0.8, 1, 0), 0.785, 4.0),
        cell("mnli", (0.6, 2, 0), 0.75, 3.0),
        cell("mnli", (0.95, 1, 0), 0.745, 9.0),
        cell("sst2", (0.95, 1, 0), 0.79, 9.0),
    ]
    found = study.means(cells)
    assert found[0]["seeds"] == 2
    assert found[0]["score"] == pytest.approx(0.805)
    best = [(least, x and x["throughput_ratio"]) for least, x in study.fastest(found, "mnli")]
    assert best == [(0.80, pytest.approx(2.1)), (0.78, 4.0), (0.76, 4.0), (0.74, 9.0)]
    other = [x and x["throughput_ratio"] for _, x in study.fastest(found, "sst2")]
    assert other == [None, 9.0, 9.0, 9.0]
    for i, x in enumerate(cells):
        work(tmp_path).keep(f"d-{i}", x)
    shown = "\n".join(part("table").lines(work(tmp_path)))
    assert "80.5 [80.0, 81.0] 2.1x" in shown
    assert "fastest at 74.0: 9.00x, 900 rows/s (95% cut, n=1, 74.50)" in shown
    assert "fastest at 80.0: no cell" in shown


def test_one_command_prints_one_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setitem(GPU.TINY, "cells", ((0.0, 1),))
    line = ["--device", "cpu", "--tiny", "--minutes", "1", "--parts", "ad", "--work"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *line, str(tmp_path)])
    GPU.main()
    shown = capsys.readouterr()
    assert shown.out.startswith("device    CPU (a dry run, not a GPU): ")
    assert "part d: left out, it needs --task NAME MODEL DIR" in shown.err
    assert "command   python bench/gpu.py --device cpu --tiny" in shown.out
    assert shown.out == (tmp_path / "table.txt").read_text(encoding="utf-8")
    assert all(x.stat().st_size < LIMIT for x in tmp_path.rglob("*"))
