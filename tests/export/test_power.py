"""Energy counters: read, wrapped around, absent, forbidden."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prumux.export.benchmark import power
from prumux.export.benchmark import run as benchrun
from prumux.export.benchmark.engines import OpenedModel
from prumux.export.benchmark.power import Meter, cpu_meter, gpu_meter


def package(root: Path, index: int, name: str, joules: float, most: float = 1000) -> Path:
    zone = root / f"intel-rapl:{index}"
    zone.mkdir()
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text(f"{most * 1e6:.0f}\n")
    (zone / "energy_uj").write_text(f"{joules * 1e6:.0f}\n")
    return zone / "energy_uj"


def test_all_packages_are_counted(tmp_path: Path) -> None:
    first, second = (package(tmp_path, i, f"package-{i}", 990) for i in range(2))
    package(tmp_path, 2, "psys", 5)  # holds the packages
    meter, name = cpu_meter(tmp_path)
    assert meter is not None
    assert name == meter.name == "RAPL, whole CPU packages"
    before = meter.read()
    assert before == (990, 990)
    first.write_text("993000000")
    second.write_text("4000000")  # it started again at 0
    assert meter.spent(before, meter.read()) == pytest.approx(3 + 14)


def test_counters_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cpu_meter(tmp_path) == (
        None,
        "not readable: this machine shows no energy counters of its CPU",
    )
    file = package(tmp_path, 0, "package-0", 1)
    file.write_text("many")
    assert cpu_meter(tmp_path)[1] == "not readable: the energy counters of this CPU are broken"

    def forbidden(path: Path) -> float:
        raise PermissionError(13, "denied", str(path))

    monkeypatch.setattr(power, "_joules", forbidden)
    meter, why = cpu_meter(tmp_path)
    assert meter is None
    assert why.endswith("max_energy_range_uj needs more rights (root)")


def test_a_gpu_is_counted_in_millijoules(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("pynvml")
    library.NVMLError = type("NVMLError", (Exception,), {})
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetHandleByIndex = lambda index: index
    library.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    library.nvmlDeviceGetTotalEnergyConsumption = lambda handle: 2500
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter, name = gpu_meter()
    assert meter is not None
    assert name == "NVML, whole GPU"
    assert meter.read() == (2.5,)
    assert meter.spent((1.0,), (2.5,)) == 1.5

    def refuses() -> None:
        raise library.NVMLError("no driver")

    library.nvmlInit = refuses
    assert gpu_meter() == (None, "not readable: no driver")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert gpu_meter()[1].startswith("not readable: pynvml is not installed")


class Engine:
    """Gives nothing, at once."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        return np.zeros((len(inputs["input_ids"]), 2), np.float32)

    def describe(self) -> Mapping[str, str]:
        return {"engine": "none", "device": "cpu"}


def test_energy_is_that_of_the_timed_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchrun, "LEAST_MS", 1.0)
    joules = iter(float(x) for x in range(0, 1000, 5))
    meter = Meter("test", lambda: (next(joules),), (math.inf,))
    opened = [OpenedModel(x, Engine(), 100, False, 0) for x in ("a", "b")]
    runs = [[{"input_ids": np.zeros((4, 3), np.int64)}]] * 2
    first, second = benchrun.measure(opened, runs, 4, rounds=3, meters=[meter, None])
    # Three rounds of 5 joules each.
    assert first.rows_per_second_per_watt == pytest.approx(4 * first.runs / 15)
    assert first.mean_watts is not None
    assert first.mean_watts > 0
    assert second.mean_watts is None
    assert second.rows_per_second_per_watt is None
