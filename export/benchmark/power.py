"""Read the energy counters of CPUs (RAPL) and GPUs (NVML).

Sources: https://docs.kernel.org/power/powercap/powercap.html and
https://docs.nvidia.com/deploy/nvml-api/
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, eq=False)
class Meter:
    """Energy counters. Each counter rises until it wraps around to 0."""

    name: str
    read: Callable[[], tuple[float, ...]]
    """Reads all counters, in joules."""
    wraps: tuple[float, ...]
    """Joules at which each counter wraps around; inf = never."""

    def spent(self, before: Sequence[float], after: Sequence[float]) -> float:
        """Joules between two reads of the counters, each of which may wrap around once."""
        return sum(
            b - a if b >= a else b - a + wrap
            for a, b, wrap in zip(before, after, self.wraps, strict=True)
        )


def meter(device: str) -> tuple[Meter | None, str]:
    """The energy meter of a `cpu`, `gpu` or `cuda` device.

    Returns:
        The meter and its name, or None and the reason why there is no meter.
    """
    return cpu_meter() if device == "cpu" else gpu_meter()


def cpu_meter(root: Path = POWERCAP) -> tuple[Meter | None, str]:
    """The meter of all CPU packages (RAPL), which counts the energy of all programs.

    Returns:
        The meter and its name, or None and the reason why there is no meter.
    """
    zones = [x for x in sorted(root.glob("intel-rapl:*")) if x.name.count(":") == 1]
    try:
        found = [
            x for x in zones if (x / "name").read_text(encoding="utf-8").startswith("package")
        ]
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
    return int(file.read_text(encoding="utf-8")) / 1e6


def gpu_meter() -> tuple[Meter | None, str]:
    """The meter of the first GPU that torch sees (NVML), which counts the whole board.

    Returns:
        The meter and its name, or None and the reason why there is no meter.
    """
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
    """NVML's handle of torch's first GPU. NVML may have other numbers, and see more GPUs."""
    import torch

    if torch.cuda.is_available():
        uuid = torch.cuda.get_device_properties(0).uuid
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
    return pynvml.nvmlDeviceGetHandleByIndex(0)
