"""Interleaved timing: engines take turns, so that drift of the machine affects all equally."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prumux.optimizer.base.cores import CoreMonitor

SETTLE_CHECKS = 20
"""Largest number of checks, 5 ms apart, that wait for this process to become idle."""
LEAST_MS = 200.0
"""Milliseconds that a round should take; short runs are repeated to fill them."""


@dataclass(frozen=True)
class Timing:
    """Wall-clock milliseconds of one engine, one number for each round."""

    rounds_ms: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Median over rounds, the figure to quote."""
        return statistics.median(self.rounds_ms)

    @property
    def low_ms(self) -> float:
        """Time of the fastest round."""
        return min(self.rounds_ms)

    @property
    def high_ms(self) -> float:
        """Time of the slowest round."""
        return max(self.rounds_ms)


@dataclass(frozen=True)
class Speedup:
    """Ratio of two engines' throughputs, one number for each round."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median over rounds, the figure to quote."""
        return statistics.median(self.rounds)

    @property
    def low(self) -> float:
        """The smallest ratio of all rounds."""
        return min(self.rounds)

    @property
    def high(self) -> float:
        """The largest ratio of all rounds."""
        return max(self.rounds)


def interleave(
    runs: Sequence[Callable[[], object]],
    rounds: int = 5,
    warmup: int = 1,
    tick: Callable[[], object] | None = None,
    clock: Callable[[Callable[[], object]], float] | None = None,
    *,
    repeat: bool = False,
    cores: CoreMonitor | None = None,
) -> tuple[Timing, ...]:
    """Time several runs in turn (A B A B ...).

    Every second round has the reverse order, which cancels the effect of one run on the next.
    Before each run, the function waits until cores are near and the threads of the previous
    run sleep.

    Args:
        runs: functions; each is called once a round.
        rounds: number of rounds that count.
        warmup: number of rounds before them that do not count.
        tick: called after each round.
        clock: does a run and returns its milliseconds; None = the wall clock.
        repeat: True = repeat short runs for about `LEAST_MS`, and take their mean.
        cores: waits until threads run on cores near each other, before each run; None = no
            waiting.
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
            if cores is not None:
                cores.wait()
            _settle()
            took_ms = [clock(runs[i]) for _ in range(counts[i])]
            if cores is not None:
                cores.earn(sum(took_ms))
            found[i].append(statistics.fmean(took_ms))
        if tick is not None:
            tick()
    return tuple(Timing(tuple(rounds_ms)) for rounds_ms in found)


def wall_ms(run: Callable[[], object]) -> float:
    """Do a run and return its wall-clock milliseconds."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def _settle() -> None:
    """Wait until this process is idle, at most 5 ms x `SETTLE_CHECKS`.

    The threads of an engine spin for a while after a run. On two cores that made the next
    engine slower by about 10 ms.
    """
    for _ in range(SETTLE_CHECKS):
        before = time.process_time()
        time.sleep(0.005)
        if time.process_time() - before < 0.001:
            return


def speedup(slow: Timing, fast: Timing) -> Speedup:
    """Speed-up of `fast` over `slow` in each round."""
    pairs = zip(slow.rounds_ms, fast.rounds_ms, strict=True)
    return Speedup(tuple(a / b for a, b in pairs))


def percentile_ms(samples_ms: Sequence[float], share: float) -> float:
    """The smallest sample that at least `share` of the samples do not exceed."""
    ordered = sorted(samples_ms)
    # A share such as 0.95 is not exact in binary; the error must not add a sample.
    count = math.ceil(share * len(ordered) - 1e-9)
    return ordered[min(len(ordered), max(1, count)) - 1]
