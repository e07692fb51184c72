"""The number of processors that this process may use, and of threads that it shall start."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")


def processors() -> int:
    """Processors that this process may use: its affinity and the quota of its container."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    return max(1, min(count, int(cpu_quota())))  # a part of a processor would be throttled


def cpu_threads() -> int:
    """Threads of an engine and of training: one a processor, at most `OMP_NUM_THREADS`."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    wanted = int(first) if re.fullmatch(r"[0-9]{1,9}", first) else 0
    return min(wanted or processors(), processors())


def most_threads() -> int:
    """The largest thread count that an engine is given; with thousands, some engines hang."""
    return 4 * processors()


def cpu_quota(groups: Path = CGROUPS, own: Path = OWN) -> float:
    """Processors that the control groups of Linux grant; a large number without a limit.

    Args:
        groups: where the control groups are mounted, version 1 or 2.
        own: names the groups of this process.
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
        # The limit of every group above counts too. A container may see its own group as root.
        for group in (path, *path.parents):
            yield from _quota(group)
            if group == root:
                break


def _quota(group: Path) -> Iterator[float]:
    """The limit of one group, if it has one."""
    words = _text(group / "cpu.max").split()
    if not words:
        words = [_text(group / f"cpu.cfs_{x}_us").strip() for x in ("quota", "period")]
    if len(words) == 2 and all(x.isdecimal() and int(x) for x in words):
        yield int(words[0]) / int(words[1])


def proc_lines(name: str) -> list[str]:
    """Lines of a file in /proc; none where the system does not tell."""
    return _text(Path("/proc", name)).splitlines()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
