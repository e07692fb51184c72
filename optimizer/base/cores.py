"""Waits for nearby processor cores before a timed round, and reports the cost of thread joins.

A host moves the processors of a virtual machine to other cores, for seconds or minutes at a
time. If two of these cores are far apart, joining two threads takes longer. Small engines with
short steps suffer most: a pruned int8 encoder kept 0.6 of its throughput, the unpruned fp32
encoder 0.9. The ratio of the two changed, too. Timed rounds therefore start only while cores
are near each other, and reports state the measured cost of a join.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch

ELEMENTS = 40_000
"""Number of elements in the smallest addition that torch splits between two threads."""
SAMPLES = 60
FAR = 1.2
"""Cores count as far apart if a join takes over 1.2 times the shortest join so far."""
NAP_S = 0.25


@dataclass
class CoreMonitor:
    """Measures thread joins, and waits until threads run on cores near each other.

    The total waiting time is limited.
    """

    patience_s: float = 0.0
    """Seconds that `wait` may still sleep. `earn` adds to it after timed rounds."""
    most_s: float = 10.0
    """Seconds that `earn` may still add to `patience_s`."""
    least_us: float = float("inf")
    """The shortest join so far, in microseconds."""
    seen_us: list[float] = field(default_factory=list)
    """The cost of a join before each round, in microseconds."""

    def wait(self) -> None:
        """Return when cores are near each other, or when `patience_s` is used up."""
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
        """Add a round's duration to `patience_s`; all calls together add at most `most_s`."""
        more_s = min(spent_ms / 1000, self.most_s)
        self.patience_s, self.most_s = self.patience_s + more_s, self.most_s - more_s

    def facts(self) -> dict[str, str]:
        """Median [minimum, maximum] duration of a join in microseconds, for a report."""
        if not self.seen_us:
            return {}
        middle = statistics.median(self.seen_us)
        text = f"{middle:.1f} [{min(self.seen_us):.1f}, {max(self.seen_us):.1f}]"
        return {"thread_join_us": text}


def join_us() -> float:
    """Duration of a short addition in two threads, in microseconds; nearly all is the join."""
    numbers, out = torch.ones(ELEMENTS), torch.empty(ELEMENTS)
    found = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        torch.add(numbers, 1.0, out=out)
        found.append(time.perf_counter() - start)
    return 1e6 * statistics.median(found)
