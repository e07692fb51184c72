"""`bench/ragged.py` on a tiny model: every engine, equal answers in fp32, and going on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.helpers import jobs
from tests.helpers.scripts import script

PASSES = "pool-early,prune{sparsity=0.5 of=macs},slice"


@pytest.fixture(name="script")
def _script() -> ModuleType:
    return script("ragged")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("ragged")
    model = jobs.model_folder(here / "model")
    jobs.data_folder(here / "data", model)
    jobs.data_folder(here / "pairs", model, labelled=False, pairs=True)
    return here


def run(
    script: ModuleType, given: Path, out: Path, monkeypatch: pytest.MonkeyPatch, *more: str
) -> dict[str, Any]:
    data = [str(given / "data"), str(given / "pairs")]
    rows = ["--rows", "32", "--answers", "64", "--rounds", "2", "--threads", "1"]
    line = ["ragged.py", str(given / "model"), "--data", *data, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*line, *rows, "--passes", PASSES, *more])
    script.main()
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_every_engine_answers_and_finished_parts_are_kept(
    script: ModuleType,
    given: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "found.json"
    found = run(script, given, out, monkeypatch, "--batch", "8")
    assert [(x["data"], x["batch"]) for x in found["parts"]] == [("data", 8), ("pairs", 8)]
    assert {"device", "versions", "commit", "command"} <= set(found)
    for part in found["parts"]:
        assert (part["rows"], part["answers"]) == (32, 64)
        assert part["padding"] > 1.1
        names = [(x["model"], x["precision"], x["layout"]) for x in part["engines"]]
        wanted = [(m, *v) for m in ("dense", "optimised") for v in script.VARIANTS]
        assert names == wanted
        for x in part["engines"]:
            assert x["over_padded_low"] <= x["over_padded"] <= x["over_padded_high"]
            assert x["rows_per_second_low"] <= x["rows_per_second"]
            if x["precision"] == "fp32":
                assert x["max_abs_diff"] < 1e-5
                assert x["other_answers"] == 0
            elif x["layout"] == "ragged":
                assert x["max_abs_diff"] > 0
                assert x["other_answers"] < 0.5
    last = capsys.readouterr().err.strip().splitlines()
    assert len(last) >= 1 + 2 * 10
    assert "optimised int8 ragged" in last[-1]

    measured: list[int] = []
    real = script.measure

    def measure(study: Any, rows: Any, size: int) -> Any:
        measured.append(size)
        return real(study, rows, size)

    monkeypatch.setattr(script, "measure", measure)
    more = run(script, given, out, monkeypatch, "--batch", "8", "16")
    assert measured == [16, 16]
    assert [x["batch"] for x in more["parts"]] == [8, 16, 8, 16]
    assert [x for x in more["parts"] if x["batch"] == 8] == found["parts"]


def test_an_optimised_result_takes_the_place_of_passes(
    script: ModuleType, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--optimised", str(given / "model"), "--batch", "4"]
    found = run(script, given, tmp_path / "x.json", monkeypatch, *more)
    assert found["optimised"] == "model"
    with pytest.raises(SystemExit, match="nowhere"):
        run(script, given, tmp_path / "y.json", monkeypatch, "--optimised", "./nowhere")
