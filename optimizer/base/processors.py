"""Counts the processors that this process may use, and the threads that it should start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def processors() -> int:
    """Number of usable processors, at least 1, by CPU affinity and container quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, int(cpu_quota())))  # the system would throttle a fraction


def cpu_threads() -> int:
    """Thread count for engines and training: one per processor, at most `OMP_NUM_THREADS`."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    wanted = int(first) if re.fullmatch(r"[0-9]{1,9}", first) else 0
    return min(wanted or processors(), processors())


def most_threads() -> int:
    """The largest allowed thread count of an engine. Some engines hang with thousands."""
    return 4 * processors()


def cpu_quota(groups: Path = CGROUPS, own: Path = OWN) -> float:
    """Processors that Linux control groups grant to this process; 2^20 without a limit.

    Args:
        groups: the folder where control groups of version 1 or 2 are mounted.
        own: the file that names the control groups of this process.
    """
    return min(_quotas(groups, own), default=float(1 << 20))


def _quotas(groups: Path, own: Path) -> Iterator[float]:
    for line in _text(own).splitlines():
        _, _, rest = line.partition(":")
        kinds, _, name = rest.partition(":")
        if kinds and "cpu" not in kinds.split(","):
            continue
        root = groups / kinds if kinds else groups
        path = root / name.strip("/")
        # The limits of all parent groups apply too. A container may see its own group as root.
        for group in (path, *path.parents):
            yield from _quota(group)
            if group == root:
                break


def _quota(group: Path) -> Iterator[float]:
    """Yield the processor limit of one control group, if the group has a limit."""
    words = _text(group / "cpu.max").split()
    if not words:
        words = [_text(group / f"cpu.cfs_{x}_us").strip() for x in ("quota", "period")]
    if len(words) == 2 and all(x.isdecimal() and int(x) for x in words):
        yield int(words[0]) / int(words[1])


def proc_lines(name: str) -> list[str]:
    """Lines of a file in /proc; an empty list if the file cannot be read."""
    return _text(Path("/proc", name)).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
