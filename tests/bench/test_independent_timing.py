"""bench/independent_timing.py on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prumux.export.onnx import Onnx
from prumux.optimizer.model.artifact import save_artifact
from tests.helpers import jobs
from tests.helpers.factory import make_context, multiplexed, random_model
from tests.helpers.scripts import BENCH, script

independent = script("independent_timing")


def test_it_imports_nothing_of_prumux() -> None:
    text = (BENCH / "independent_timing.py").read_text(encoding="utf-8")
    assert "import prumux" not in text
    assert "from prumux" not in text


def session(batch: int, *times_ms: float) -> Any:
    return independent.Session("plain", None, batch, {}, list(times_ms))


def test_the_ratio_is_of_rows_and_not_of_runs() -> None:
    entries = (
        {"graph": "fusion=all", "batch": 8, "throughput_ratio": 2.2},
        {
            "graph": "",
            "batch": 32,
            "throughput_ratio": 2.2,
            "throughput_ratio_low": 2.0,
            "throughput_ratio_high": 2.4,
        },
    )
    both = session(8, 16.0, 16.0, 24.0), session(32, 32.0, 64.0, 32.0)
    found = independent.timing(Path("x/result"), 32, both, entries)
    assert found.throughput_ratio == 2  # 2 ms a row over 1, 2 and 1 ms
    assert (found.throughput_ratio_low, found.throughput_ratio_high) == (1, 3)
    assert (found.dense_rows_per_second, found.result_rows_per_second) == (500, 1000)
    assert found.off == pytest.approx(0.1)
    assert "2.00 [1.00, 3.00] at plain 8/32; prumux-bench 2.20" in independent.line(found)


@pytest.mark.slow
def test_one_command_times_a_result_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs.model_folder(tmp_path / "model")
    mixed = multiplexed(random_model(heads=(4, 4)), n=3)
    save_artifact(mixed, tmp_path / "mixed")
    Onnx(fusion="none").emit(mixed, make_context(mixed), tmp_path / "mixed")
    report = {"command": f"prumux-opt {tmp_path / 'model'} --data somewhere"}
    (tmp_path / "mixed" / "report.json").write_text(json.dumps(report))
    out = tmp_path / "out.json"
    command = [str(tmp_path / "mixed"), "--lengths", "8", "--out", str(out), "--quick"]
    independent.main([*command, "--batches", "4", "8", "--threads", "1"])
    said = capsys.readouterr()
    assert "mixed length 8: " in said.out
    assert "optimised by onnxruntime.transformers batch 8" in said.err
    found = json.loads(out.read_text(encoding="utf-8"))
    one = found["timings"][0]
    assert one["result_batch"] in (3, 6)  # whole groups of three rows
    assert one["bench_ratio"] == found["bench"]["8"]["best"][1]["throughput_ratio"]
    assert one["off"] == pytest.approx(one["bench_ratio"] / one["throughput_ratio"] - 1)
    assert str(tmp_path) not in out.read_text(encoding="utf-8")


def test_results_of_two_models_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        report = {"command": f"prumux-opt {tmp_path / name} --budget 2%"}
        (tmp_path / name / "report.json").write_text(json.dumps(report))
    assert independent.given_model([tmp_path / "a"]) == tmp_path / "a"
    with pytest.raises(SystemExit, match="--dense MODEL"):
        independent.given_model([tmp_path / "a", tmp_path / "b"])


def test_the_slowest_part_of_a_round_does_not_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(independent, "REST_S", 0.0)
    a, b = session(8), session(16)
    a._seconds = lambda n: n * 0.008
    slow = iter([0.08, 0.08] + [0.012] * 20)
    b._seconds = lambda n: next(slow) * n
    best = independent.fastest([a, b], 3, 1.0)
    assert best is b
    assert best.times_ms == []
