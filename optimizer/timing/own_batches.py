"""Time the given model's and the optimised engine, each at its own best batch size.

With a common batch size, the engine that suits this size better would have an advantage.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.pipeline.engine import Engine

from .interleave import Timing, interleave, speedup

SIZES = (8, 16, 32, 64)
"""Batch sizes to try, in rows."""
PROBES = 2
ROUNDS = 5
Workloads = Mapping[int, Sequence[Batch]]
"""The batches of one round, by batch size."""


@dataclass(frozen=True)
class OwnBatch:
    """An engine at the batch size at which it is fastest."""

    batch: int
    rows_per_second: float
    throughput_ratio: float
    """Median over rounds of the ratio to the given model's engine at its own best batch
    size."""
    throughput_ratio_low: float
    throughput_ratio_high: float


def time_own_batches(
    dense: tuple[Engine, Workloads],
    optimised: tuple[Engine, Workloads],
    progress: Progress,
    cores: CoreMonitor | None = None,
) -> tuple[OwnBatch, OwnBatch]:
    """Try every batch size for a few rounds, then time both engines at their best size.

    Args:
        dense: the given model's engine, and the batches of each size to try.
        optimised: the shipped engine, and the same texts in batches of the same sizes.
        progress: shows the rounds.
        cores: waits until threads run on cores near each other, before each run.
    """
    both = (dense, optimised)
    with progress.task("timing batch sizes", PROBES + ROUNDS) as step:
        runs = [_pass_over(x, batches) for x, work in both for batches in work.values()]
        probes = interleave(runs, PROBES, tick=step, cores=cores)
        workloads, each = dense[1], len(dense[1])
        sizes = [_best(workloads, probes[i : i + each]) for i in (0, each)]
        best = [_pass_over(x, work[n]) for (x, work), n in zip(both, sizes, strict=True)]
        timings = interleave(best, ROUNDS, tick=step, repeat=True, cores=cores)
    per_row = [
        Timing(tuple(ms / _rows(workloads[n]) for ms in timing.rounds_ms))
        for timing, n in zip(timings, sizes, strict=True)
    ]
    first, second = (
        OwnBatch(n, 1000 / x.median_ms, gain.median, gain.low, gain.high)
        for n, x, gain in (
            (n, x, speedup(per_row[0], x)) for n, x in zip(sizes, per_row, strict=True)
        )
    )
    return first, second


def _best(workloads: Workloads, probes: Sequence[Timing]) -> int:
    """The batch size with the least time per row, by the fastest round of each size."""
    found = {
        n: probe.low_ms / _rows(workloads[n])
        for n, probe in zip(workloads, probes, strict=True)
    }
    return min(found, key=found.__getitem__)


def _pass_over(engine: Engine, workload: Sequence[Batch]) -> Callable[[], object]:
    inputs = [batch.inputs() for batch in workload]
    return lambda: [engine.run(x) for x in inputs]


def _rows(workload: Sequence[Batch]) -> int:
    return sum(len(x.rows) for x in workload)
