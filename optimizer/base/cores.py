"""Waits for near processor cores before a timed round, and reports what joining threads cost.

The host of a virtual machine moves its processors about, for seconds or minutes at a time.
When two of them lie far apart, every short step of a small engine pays more for joining its
threads: a pruned int8 encoder kept 0.6 of its throughput, the dense fp32 one 0.9, so their
ratio changed too. Timed rounds therefore begin while cores are near, and reports state the
measured cost of a join.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch

ELEMENTS = 40_000
"""Elements of the smallest addition that torch splits between two threads."""
SAMPLES = 60
FAR = 1.2
"""Cores are far apart when a join takes this many times the shortest join seen so far."""
NAP_S = 0.25


@dataclass
class CoreMonitor:
    """Measures thread joins and waits until cores are near, for a limited time in all."""

    patience_s: float = 0.0
    """Seconds that `wait` may still sleep; timed rounds add to it, see `earn`."""
    most_s: float = 10.0
    """Seconds that `earn` may still add."""
    least_us: float = float("inf")
    """The shortest join so far, in microseconds."""
    seen_us: list[float] = field(default_factory=list)
    """The cost of a join before each round, in microseconds."""

    def wait(self) -> None:
        """Return when cores are near, or when `patience_s` is used up."""
        if torch.get_num_threads() == 1:
            return
        while True:
            cost_us = join_us()
            self.least_us = min(self.least_us, cost_us)
            if cost_us <= FAR * self.least_us or self.patience_s <= 0:
                break
            time.sleep(NAP_S)
            self.patience_s -= NAP_S
        self.seen_us.append(cost_us)

    def earn(self, spent_ms: float) -> None:
        """Add the time of a round to `patience_s`, at most `most_s` in all."""
        more_s = min(spent_ms / 1000, self.most_s)
        self.patience_s, self.most_s = self.patience_s + more_s, self.most_s - more_s

    def facts(self) -> dict[str, str]:
        """For a report: median [minimum, maximum] of a join, in microseconds."""
        if not self.seen_us:
            return {}
        middle = statistics.median(self.seen_us)
        text = f"{middle:.1f} [{min(self.seen_us):.1f}, {max(self.seen_us):.1f}]"
        return {"thread_join_us": text}


def join_us() -> float:
    """Microseconds of a short addition in two threads; nearly all of it is the join."""
    numbers, out = torch.ones(ELEMENTS), torch.empty(ELEMENTS)
    found = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        torch.add(numbers, 1.0, out=out)
        found.append(time.perf_counter() - start)
    return 1e6 * statistics.median(found)
