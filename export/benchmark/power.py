"""Energy counters of processors, where they can be read."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, eq=False)
class Meter:
    """Counters that only rise, until they start again at 0."""

    name: str
    read: Callable[[], tuple[float, ...]]
    """Joules, one number a counter."""
    wraps: tuple[float, ...]
    """Joules at which each starts again; inf = never."""

    def spent(self, before: Sequence[float], after: Sequence[float]) -> float:
        """Joules between two readings, no longer apart than one counter's round."""
        return sum(
            b - a if b >= a else b - a + wrap
            for a, b, wrap in zip(before, after, self.wraps, strict=True)
        )


def meter(device: str) -> tuple[Meter | None, str]:
    """The meter of a `cpu`, `gpu` or `cuda` device, if there is one, and what it counts.

    The second value says why there is none where that is so.
    """
    return cpu_meter() if device == "cpu" else gpu_meter()


def cpu_meter(root: Path = POWERCAP) -> tuple[Meter | None, str]:
    """RAPL's counters of all CPU packages, which count whatever else runs there as well."""
    zones = [x for x in sorted(root.glob("intel-rapl:*")) if x.name.count(":") == 1]
    try:
        found = [x for x in zones if (x / "name").read_text().startswith("package")]
        wraps = tuple(_joules(x / "max_energy_range_uj") for x in found)
        files = [x / "energy_uj" for x in found]
        for file in files:
            _joules(file)
    except PermissionError as error:
        return None, f"not readable: {error.filename} needs more rights (root)"
    except (OSError, ValueError):
        return None, "not readable: the energy counters of this CPU are broken"
    if not files:
        return None, "not readable: this machine shows no energy counters of its CPU"
    name = "RAPL, whole CPU packages"
    return Meter(name, lambda: tuple(map(_joules, files)), wraps), name


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def gpu_meter() -> tuple[Meter | None, str]:
    """NVML's counter of the first GPU that torch sees, the board as a whole."""
    try:
        import pynvml
    except ImportError:
        return None, "not readable: pynvml is not installed (pip install nvidia-ml-py)"
    try:
        pynvml.nvmlInit()
        handle = _handle(pynvml)
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except pynvml.NVMLError as error:
        return None, f"not readable: {error}"
    name = "NVML, whole GPU"
    return Meter(
        name,
        lambda: (pynvml.nvmlDeviceGetTotalEnergyConsumption(handle) / 1e3,),
        (math.inf,),
    ), name


def _handle(pynvml: Any) -> Any:
    """NVML counts all GPUs of the machine, torch those that it may use."""
    import torch

    if torch.cuda.is_available():
        uuid = torch.cuda.get_device_properties(0).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return pynvml.nvmlDeviceGetHandleByIndex(0)
