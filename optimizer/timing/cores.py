"""What does it cost to start two threads and to wait for both?

A virtual machine's host moves its processors about, for seconds or minutes at a time. When two
of them lie far apart, each of the many short steps of a small engine pays more for threads:
a pruned int8 encoder kept 0.6 of its throughput, the dense fp32 one 0.9, and their ratio was
another. So rounds begin while threads are near, and what joining them cost is stated.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch

ELEMENTS = 40_000
"""An addition of so many is the smallest that torch gives to two threads."""
SAMPLES = 60
FAR = 1.2
"""Threads are far apart when joining them takes so many times as long as ever before."""
NAP_S = 0.25


@dataclass
class Watch:
    """Sees to it that rounds begin while threads are near, as long as its patience lasts."""

    patience_s: float = 0.0
    """Seconds that it will wait yet: as many as were spent on rounds, see `earn`."""
    most_s: float = 60.0
    """Seconds that it may still be given."""
    least_us: float = float("inf")
    seen_us: list[float] = field(default_factory=list)
    """What joining cost before each round."""

    def wait(self) -> None:
        """Return when threads are as near as they have been, or patience is at its end."""
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
        """Be patient for as long as a round took, up to `most_s` in all."""
        more_s = min(spent_ms / 1000, self.most_s)
        self.patience_s, self.most_s = self.patience_s + more_s, self.most_s - more_s

    def told(self) -> dict[str, str]:
        """For a report: median, least and most of what joining cost, in microseconds."""
        if not self.seen_us:
            return {}
        middle = statistics.median(self.seen_us)
        text = f"{middle:.1f} [{min(self.seen_us):.1f}, {max(self.seen_us):.1f}]"
        return {"thread_join_us": text}


WATCH = Watch()
"""That of this process."""


def join_us() -> float:
    """Microseconds of a short addition in two threads; nearly all of it is their joining."""
    numbers, out = torch.ones(ELEMENTS), torch.empty(ELEMENTS)
    found = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        torch.add(numbers, 1.0, out=out)
        found.append(time.perf_counter() - start)
    return 1e6 * statistics.median(found)
