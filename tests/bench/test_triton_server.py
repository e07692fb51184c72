"""`bench/triton_server.py` on tiny models: no request lost, no answer crossed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prumux.export.graph import graph_file
from prumux.export.graph.graph import build
from prumux.export.runtime.ort import OrtEngine
from tests.helpers.factory import multiplexed, random_model
from tests.helpers.readme import write_artifact
from tests.helpers.scripts import script
from tests.helpers.tritonserver import needs_server


@pytest.fixture(name="bench")
def _bench() -> ModuleType:
    return script("triton_server")


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 3])
def test_a_run_with_64_clients_of_three_tenants(
    n: int,
    bench: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = random_model(heads=(4, 4), hidden=16, labels=3)
    write_artifact(multiplexed(model, n=n, at=1) if n > 1 else model, tmp_path / "artifact")
    line = f"triton_server.py {tmp_path}/artifact --out {tmp_path}/found.json --requests 900"
    line += " --round-rows 96 --rounds 2 --rows 1 8 --packers 1"
    monkeypatch.setattr(sys, "argv", line.split())
    bench.main()
    found = json.loads((tmp_path / "found.json").read_text())
    answers = found["answers"]
    assert answers["first_error"] == ""
    assert (answers["requests"], answers["lost"], answers["crossed"]) == (900, 0, 0)
    assert answers["shared"] == 0 or n == 1
    assert answers["rows_a_run"] > n, "requests must have met"
    if n == 1:
        assert answers["difference_alone"] < 1e-4
    assert [x["name"] for x in found["timings"]] == [
        "engine, one row",
        f"engine, batches of {64 // n * n}",
        "server, 1 clients, 1 rows each",
        "server, 64 clients, 1 rows each",
        "server, 64 clients, 8 rows each",
        "no engine, 1 packers, 64 clients, 8 rows each",
    ]
    for x in found["timings"]:
        assert len(x["rows_per_second"]) == 2
        assert 0 < x["latency_ms_p50"] <= x["latency_ms_p99"]
    assert {"command", "commit", "versions", "device", "date"} <= set(found)
    assert "900 requests: 0 lost, 0 rows crossed" in capsys.readouterr().out


def test_a_crossed_answer_is_found(bench: ModuleType, tmp_path: Path) -> None:
    """Two rows of two tenants share a group, and their answers are swapped."""
    import pickle

    model = multiplexed(random_model(heads=(4, 4), hidden=16, labels=3), n=2, at=1)
    rows = bench.random_rows(model, 3, 5, 9)
    inputs = bench.inputs_of(model, rows[:2])
    logits = np.arange(6, dtype=np.float32).reshape(2, 3)
    with (tmp_path / "runs").open("wb") as file:
        pickle.dump((inputs["input_ids"], inputs["attention_mask"], logits), file)
    load = bench.Load(clients=1, tenants=2)
    right = bench.Answers({0: logits[:1], 1: logits[1:]})
    found = bench.check_answers(model, rows, load, right, tmp_path / "runs")
    assert (found["lost"], found["crossed"], found["shared"]) == (1, 0, 1)
    swapped = bench.Answers({0: logits[1:], 1: logits[:1]})
    graph_file.save(build(model), tmp_path)
    engine = OrtEngine(tmp_path / "model.onnx", 1)
    own = bench.Answers({i: engine.run(bench.inputs_of(model, [rows[i]])) for i in range(3)})
    assert bench.difference(model, engine, rows, own) == 0
    assert bench.difference(model, engine, rows, swapped) > 1
    found = bench.check_answers(model, rows, load, swapped, tmp_path / "runs")
    assert (found["lost"], found["crossed"]) == (1, 2)
