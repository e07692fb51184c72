"""Dense and optimised engine, each at the batch size at which it is fastest."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import prumux
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.report.contents import Report
from prumux.optimizer.report.encoding import from_json
from prumux.optimizer.report.terminal import summary
from prumux.optimizer.timing.own_batches import time_own_batches
from tests.helpers import jobs

ROW_MS = 0.1


class CrowdedEngine:
    """Takes a fixed time a run, and four times as long a row beyond `most` rows."""

    def __init__(self, fixed_ms: float, most: int) -> None:
        self.fixed_ms, self.most = fixed_ms, most

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(inputs["input_ids"])
        each = ROW_MS if rows <= self.most else 4 * ROW_MS
        time.sleep((self.fixed_ms + each * rows) / 1000)
        return np.zeros((rows, 2), np.float32)

    def describe(self) -> Mapping[str, str]:
        return {"device": "cpu"}


def test_each_at_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.optimizer.timing.interleave.LEAST_MS", 1.0)
    monkeypatch.setattr("prumux.optimizer.timing.own_batches.PROBES", 2)
    monkeypatch.setattr("prumux.optimizer.timing.own_batches.ROUNDS", 5)
    rows = Encoded(Ragged.of([[1, 2, 3]] * 32), None, None, 0)
    workloads = {n: workload(rows, n, None) for n in (8, 16, 32)}
    dense, fast = CrowdedEngine(1.0, most=8), CrowdedEngine(0.8, most=99)
    first, second = time_own_batches((dense, workloads), (fast, workloads), Progress(0))
    assert (first.batch, second.batch) == (8, 32)
    assert first.throughput_ratio == first.throughput_ratio_low == 1
    # 1.8 ms for 8 rows against 4.0 ms for 32: 1.8; at 32 rows each it would be 3.5.
    assert 1.2 < second.throughput_ratio < 2.6
    assert second.throughput_ratio_low <= second.throughput_ratio
    rate = second.rows_per_second / first.rows_per_second
    assert rate == pytest.approx(second.throughput_ratio, rel=0.5)


def test_a_run_reports_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.optimizer.timing.interleave.LEAST_MS", 1.0)
    # Noise may drop the engine of a tiny model.
    monkeypatch.setattr("prumux.optimizer.run.packaging._slower", lambda *_: False)
    model = jobs.model_folder(tmp_path / "model")
    jobs.data_folder(tmp_path / "data", model)
    prumux.optimize(
        tmp_path / "model",
        data=tmp_path / "data",
        passes="prune-ffn{ratio=0.9},slice",
        out=tmp_path / "out",
    )
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    dense, ours = (report["speed"][x]["own_batch"] for x in ("dense", "optimised"))
    assert dense["batch"] in (8, 16, 32, 64)
    assert ours["batch"] in (8, 16, 32, 64)
    assert dense["throughput_ratio"] == 1
    assert ours["throughput_ratio_low"] <= ours["throughput_ratio"]
    assert "each best" in "".join(summary(from_json(Report, report), tmp_path))
