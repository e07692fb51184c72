"""`bench/bottom.py` on a tiny model: both models, their rates, and a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import jobs
from tests.helpers.scripts import script


def test_scores_rates_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("bottom")
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    out = tmp_path / "found.json"
    line = [str(model), "--data", str(data), "--out", str(out), "--regularise", "2"]
    module.main(line)
    found = json.loads(out.read_text())
    (regression,) = found["regressions"]
    assert regression["C"] == 2
    for x in (found["bag"], regression):
        assert x["accuracy"].keys() == {"select", "certify", "test"}
        lost = found["dense"]["test"] - x["accuracy"]["test"]
        assert x["deferred"]["0.0"] == pytest.approx(lost)
    assert found["rates"]["bag_rows_per_second"] > 0
    assert "text to label" in capsys.readouterr().err.strip().splitlines()[-1]

    def refuse(*given: Any) -> None:
        raise AssertionError(given)

    for name in ("bag_scores", "regression_scores", "rates"):
        monkeypatch.setattr(module, name, refuse)
    out.unlink()
    module.main(line)
    assert json.loads(out.read_text())["bag"] == found["bag"]
