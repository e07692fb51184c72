"""Timing that can be believed: interleaved, warmed up, every round kept."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .cores import WATCH

SETTLE_CHECKS = 20
"""How often to look whether this process is idle, 5 ms apart."""
LEAST_MS = 200.0
"""Short runs are repeated until a round takes about so long: one of 20 ms is mostly luck."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds, one number a round."""

    rounds_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """The figure to quote."""
        return statistics.median(self.rounds_ms)

    @property
    def low_ms(self) -> float:
        """The fastest round."""
        return min(self.rounds_ms)

    @property
    def high_ms(self) -> float:
        """The slowest round."""
        return max(self.rounds_ms)


def interleave(
    runs: Sequence[Callable[[], object]],
    rounds: int = 5,
    warmup: int = 1,
    tick: Callable[[], object] | None = None,
    clock: Callable[[Callable[[], object]], float] | None = None,
    *,
    repeat: bool = False,
) -> tuple[Timing, ...]:
    """Time several things in turn (A B A B ...), so that drift of the machine hits all alike.

    Every second round runs backwards, which cancels what one run leaves behind for the next,
    and each waits until threads are near and those of the run before it sleep. `clock` does a
    run and says how many milliseconds it took; the wall clock when left out. With `repeat` a
    round's time is the mean of as many runs as make up `LEAST_MS`.
    """
    clock = clock or wall_ms
    once_ms = [LEAST_MS] * len(runs)
    for _ in range(max(warmup, repeat)):
        once_ms = [clock(run) for run in runs]
    counts = [max(1, round(LEAST_MS / max(x, 1e-3))) if repeat else 1 for x in once_ms]
    found: list[list[float]] = [[] for _ in runs]
    for r in range(rounds):
        order = range(len(runs)) if r % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            WATCH.wait()
            _settle()
            took_ms = [clock(runs[i]) for _ in range(counts[i])]
            WATCH.earn(sum(took_ms))
            found[i].append(statistics.fmean(took_ms))
        if tick is not None:
            tick()
    return tuple(Timing(tuple(rounds_ms)) for rounds_ms in found)


def wall_ms(run: Callable[[], object]) -> float:
    """Milliseconds of a run by the wall clock."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def _settle() -> None:
    """Wait until this process is idle, but not for ever.

    An engine's threads spin on for a while after a run. On two cores that alone made the next
    engine slower by about 10 ms.
    """
    for _ in range(SETTLE_CHECKS):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.001:
            return


def ratio(slow: Timing, fast: Timing) -> Timing:
    """Round-by-round speed-up of `fast` over `slow` (dimensionless, kept as a `Timing`)."""
    pairs = zip(slow.rounds_ms, fast.rounds_ms, strict=True)
    return Timing(tuple(a / b for a, b in pairs))


def percentile_ms(samples_ms: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of the samples do not exceed."""
    ordered = sorted(samples_ms)
    # A share such as 0.95 is a hair off in binary: that must not cost a sample.
    count = math.ceil(share * len(ordered) - 1e-9)
    return ordered[min(len(ordered), max(1, count)) - 1]
