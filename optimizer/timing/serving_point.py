"""Time engines in turn at the serving point: throughput of batches, latency of single rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from numpy.typing import NDArray

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.predict import Arrivals
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.pipeline.engine import Engine

from .interleave import Timing, interleave, percentile_ms, speedup
from .own_batches import OwnBatch

ROUNDS = 11
SINGLE_ROWS = 32
SINGLE_ROUNDS = 6


@dataclass(frozen=True)
class ServingPoint:
    """The batches on which throughput is measured."""

    batch: int
    """Rows in a batch."""
    length: int | None
    """Number of tokens of every row; None = rows keep their lengths."""
    mean_tokens: int
    """Mean number of real tokens of a row."""
    threads: int
    """CPU threads of an engine."""
    arrivals: Arrivals = "sorted"
    """The order in which rows arrive."""

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values. `length` is `data` if rows keep their lengths."""
        return {**asdict(self), "length": self.length or "data"}


@dataclass(frozen=True)
class Speed:
    """Throughput and latency of one engine at the serving point."""

    rows_per_second: float
    rows_per_second_low: float
    rows_per_second_high: float
    latency_ms_p50: float
    """Median latency of single rows."""
    latency_ms_p90: float
    latency_ms_p99: float
    throughput_ratio: float
    """Median over rounds of this engine's throughput over the first engine's."""
    throughput_ratio_low: float
    throughput_ratio_high: float
    own_batch: OwnBatch | None = None
    """The engine at its own best batch size; None = not timed."""


UNTIMED = Speed(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def compare(
    timed: Sequence[tuple[Engine, Sequence[Batch]]],
    progress: Progress,
    cores: CoreMonitor | None = None,
) -> list[Speed]:
    """Time all engines in one interleaved run. Ratios compare to the first engine.

    Args:
        timed: each engine with its batches, which have the same texts for all engines.
        progress: shows the rounds.
        cores: waits until threads run on cores near each other, before each run.
    """
    work = [(engine, [batch.inputs() for batch in batches]) for engine, batches in timed]
    rows = sum(len(batch.rows) for batch in timed[0][1])
    runs = [_pass_over(engine, inputs) for engine, inputs in work]
    with progress.task("timing engines", ROUNDS + SINGLE_ROUNDS) as step:
        timings = interleave(runs, ROUNDS, warmup=2, tick=step, repeat=True, cores=cores)
        singles = _singles(work, step, cores)
    return [
        _speed(rows, timing, timings[0], single)
        for timing, single in zip(timings, singles, strict=True)
    ]


Inputs = Mapping[str, NDArray[Any]]


def _pass_over(engine: Engine, inputs: Sequence[Inputs]) -> Callable[[], object]:
    return lambda: [engine.run(x) for x in inputs]


def _singles(
    work: Sequence[tuple[Engine, Sequence[Inputs]]],
    step: Callable[[], None],
    cores: CoreMonitor | None,
) -> list[list[float]]:
    """For each engine, milliseconds of single unpadded rows in all rounds."""
    found: list[list[float]] = [[] for _ in work]

    def one_by_one(engine: Engine, inputs: Sequence[Inputs], times_ms: list[float]) -> None:
        each = max(1, SINGLE_ROWS // len(inputs))
        for row in (_row(x, i) for x in inputs for i in range(min(each, len(x["input_ids"])))):
            start = time.perf_counter()
            engine.run(row)
            times_ms.append((time.perf_counter() - start) * 1000)

    runs = [partial(one_by_one, *pair, to) for pair, to in zip(work, found, strict=True)]
    interleave(runs, SINGLE_ROUNDS, warmup=0, tick=step, cores=cores)
    return found


def _row(inputs: Inputs, i: int) -> Inputs:
    length = int(inputs["attention_mask"][i].sum())
    return {name: value[i : i + 1, :length] for name, value in inputs.items()}


def _speed(rows: int, timing: Timing, first: Timing, single: Sequence[float]) -> Speed:
    gain = speedup(first, timing)
    return Speed(
        rows_per_second=1000 * rows / timing.median_ms,
        rows_per_second_low=1000 * rows / timing.high_ms,
        rows_per_second_high=1000 * rows / timing.low_ms,
        latency_ms_p50=percentile_ms(single, 0.5),
        latency_ms_p90=percentile_ms(single, 0.9),
        latency_ms_p99=percentile_ms(single, 0.99),
        throughput_ratio=gain.median,
        throughput_ratio_low=gain.low,
        throughput_ratio_high=gain.high,
    )
