"""Facts that accompany every measurement: library versions, processor, command, commit."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .cores import CoreMonitor
from .processors import cpu_threads, proc_lines

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
"""Instruction sets that determine the speed of int8 and bf16, under their Linux names."""


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    return dict(_versions())


@cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def free_bytes() -> int:
    """Free memory in bytes; 1 PiB if the system does not report it."""
    lines = proc_lines("meminfo")
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return 1024 * int(next(found, 1 << 40))


def device() -> dict[str, str]:
    """Name, instruction sets and thread count of the processor, as text."""
    flags = _cpu_fact("flags", "Features").split()
    return {
        "cpu": _cpu_fact("model name") or platform.processor() or "unknown",
        "cpu_isa": " ".join(x for x in ISA if x in flags),
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu_threads": str(cpu_threads()),
    }


def cpu() -> str:
    """Name and instruction sets of the processor. int8 results depend on both."""
    found = device()
    return f"{found['cpu']} ({found['cpu_isa'] or found['machine']})"


def int8_saturates() -> bool:
    """True if sums of 8-bit products can overflow: x86 without VNNI adds them in 16 bits."""
    flags = device()["cpu_isa"].split()
    return "avx2" in flags and not {"avx512_vnni", "avx_vnni"} & set(flags)


def provenance(cores: CoreMonitor | None = None) -> dict[str, Any]:
    """Command, commit, date, versions and device, for a file of measurements.

    Args:
        cores: the core monitor of the timed rounds; None if nothing was timed.
    """
    command = ["git", "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(
            command, cwd=Path(sys.argv[0]).parent, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        # File names only: a path means nothing on another machine.
        "command": shlex.join([Path(x).name if "/" in x else x for x in sys.argv]),
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "device": {**device(), **(cores.facts() if cores else {})},
    }


def _cpu_fact(*names: str) -> str:
    """The first field of /proc/cpuinfo that has one of these names; empty if none has."""
    for line in proc_lines("cpuinfo"):
        name, _, value = line.partition(":")
        if name.strip() in names:
            return value.strip()
    return ""
