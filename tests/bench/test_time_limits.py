"""`bench/time_limits.py` on a tiny model: every run, its candidates, and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import jobs
from tests.helpers.scripts import script


def test_runs_candidates_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("time_limits")
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    out = tmp_path / "found.json"
    line = [str(model), "--data", str(data), "--out", str(out), "--budget", "30%"]
    line += ["--minutes", "0.05"]
    module.main(line)
    found = json.loads(out.read_text())["runs"]
    assert [x["run"] for x in found] == ["quick", "standard-0.05"]
    for one in found:
        assert one["speed"]["throughput_ratio"] > 0
        pipelines = [x["pipeline"] for x in one["candidates"]]
        if one["met"]:
            (shipped,) = [x for x in one["candidates"] if x["pipeline"] == one["pipeline"]]
            assert shipped["test_loss"] == pytest.approx(
                one["scores"]["test"]["loss"], abs=0.02
            )
        assert len(pipelines) == len(set(pipelines)) > 1
    assert "lost: select, expected, test" in capsys.readouterr().err

    def refuse(*given: Any) -> None:
        raise AssertionError(given)

    monkeypatch.setattr(module, "run", refuse)
    module.main(line)
    again = json.loads(out.read_text())["runs"]
    assert [x["candidates"] for x in again] == [x["candidates"] for x in found]
