"""What a measurement must state: versions and device."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from prumux.optimizer.timing.cores import WATCH

LIBRARIES = (
    "prumux",
    "torch",
    "transformers",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
)
ISA = (
    *("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
    *("asimddp", "i8mm", "bf16", "sve"),
)
"""Instructions that decide what int8 and bf16 are worth, as Linux names them."""


def versions() -> dict[str, str]:
    """Versions of the libraries that results depend on, and of Python."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def cpu_threads() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def most_threads() -> int:
    """So many may be asked of an engine: with thousands, some crash or never end."""
    return 4 * cpu_threads()


def free_bytes() -> int:
    """Memory that is free now, or as good as without a limit where that cannot be told."""
    info = Path("/proc/meminfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(next(found, 1 << 40))


def device() -> dict[str, str]:
    """The processor in words."""
    flags = _cpu_fact("flags", "Features").split()
    return {
        "cpu": _cpu_fact("model name") or platform.processor() or "unknown",
        "cpu_isa": " ".join(x for x in ISA if x in flags),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_threads": str(cpu_threads()),
    }


def cpu() -> str:
    """Name and instructions of the processor: what the answers of int8 engines depend on."""
    found = device()
    return f"{found['cpu']} ({found['cpu_isa'] or found['machine']})"


def int8_saturates() -> bool:
    """Whether sums of 8-bit products overflow here: x86 without VNNI has 16 bits for them."""
    flags = device()["cpu_isa"].split()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def provenance() -> dict[str, Any]:
    """What every measured figure must name: command, commit, date, versions, device."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(
            command, cwd=Path(sys.argv[0]).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        # Names only: paths of one machine mean nothing on another.
        "command": shlex.join([Path(x).name if "/" in x else x for x in sys.argv]),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": {**device(), **WATCH.told()},
    }


def _cpu_fact(*names: str) -> str:
    """What the system says of the first processor under one of these names."""
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""
