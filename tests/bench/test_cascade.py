"""`bench/cascade.py` on a tiny model: every share, none, one and all rows, and a resume."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import jobs
from tests.helpers.scripts import script

FIRST = "pool-early,prune{sparsity=0.6 of=macs},slice,reconstruct"


def test_shares_edges_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script("cascade")
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    out = tmp_path / "found.json"
    line = ["cascade.py", str(model), "--data", str(data), "--out", str(out)]
    line += ["--first", "cut", FIRST, "--defer", "0", "0.3", "1"]
    monkeypatch.setattr(sys, "argv", [*line, "--targets", "onnx{precision=fp32 fusion=none}"])
    module.main()
    found = json.loads(out.read_text())
    (study,) = found["studies"]
    none, some, every = study["entries"]
    assert none["test"]["deferred"] == 0 < some["test"]["deferred"] < 1
    assert every["test"]["deferred"] == 1
    assert none["test"]["changed"] > some["test"]["changed"] > every["test"]["changed"] == 0
    assert every["certify"]["loss"] == 0
    assert [x["alone_differ"] for x in study["entries"]] == [0, 0, 0]
    assert {k: x["deferred"] for k, x in study["edges"].items()} == {
        "none": 0,
        "one": 1,
        "all": 32,
    }
    assert all(x["largest_difference"] < 1e-4 for x in study["edges"].values())
    assert "first model alone" in capsys.readouterr().err.strip().splitlines()[-1]

    def refuse(*given: Any) -> None:
        raise AssertionError(given)

    for name in ("scores", "edges", "times"):
        monkeypatch.setattr(module, name, refuse)
    out.unlink()
    module.main()
    assert json.loads(out.read_text())["studies"] == found["studies"]
