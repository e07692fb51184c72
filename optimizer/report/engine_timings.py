"""Timings of engines in report.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from .units import OMIT_NONE, Bytes, Milliseconds, Positive, RowsPerSecond, Times


@dataclass(frozen=True)
class OwnBatchTiming:
    """An engine at its own best batch size, beside the dense engine at its own."""

    batch: Annotated[Positive, "Rows in a batch at which it was fastest."]
    rows_per_second: Annotated[RowsPerSecond, "Throughput in the median round."]
    throughput_ratio: Annotated[
        Times, "Throughput divided by the dense engine's at its own best batch size, median."
    ]
    throughput_ratio_low: Annotated[Times, "The lowest of these ratios of any round."]
    throughput_ratio_high: Annotated[Times, "The highest of these ratios of any round."]


@dataclass(frozen=True)
class EngineTiming:
    """One engine at the serving point, timed in the same rounds as the dense engine."""

    rows_per_second: Annotated[RowsPerSecond, "Throughput in the median round."]
    rows_per_second_low: Annotated[RowsPerSecond, "Throughput in the slowest round."]
    rows_per_second_high: Annotated[RowsPerSecond, "Throughput in the fastest round."]
    latency_ms_p50: Annotated[Milliseconds, "Latency of one row alone, 50th percentile."]
    latency_ms_p90: Annotated[Milliseconds, "Latency of one row alone, 90th percentile."]
    latency_ms_p99: Annotated[Milliseconds, "Latency of one row alone, 99th percentile."]
    throughput_ratio: Annotated[
        Times, "Throughput divided by the dense engine's, median over rounds."
    ]
    throughput_ratio_low: Annotated[Times, "The lowest throughput ratio of any round."]
    throughput_ratio_high: Annotated[Times, "The highest throughput ratio of any round."]
    own_batch: Annotated[
        OwnBatchTiming | None,
        "The same at its own best batch size. Null if it was not timed so.",
        OMIT_NONE,
    ] = field(default=None, kw_only=True)


@dataclass(frozen=True)
class OtherEngine(EngineTiming):
    """An engine that was timed and is not shipped."""

    pipeline: Annotated[str, "Pipeline text. Empty for the given model."]
    target: Annotated[str, "Target text."] = ""
    file_bytes: Annotated[Bytes | None, "Size of the engine's files.", OMIT_NONE] = None
