"""Times engines side by side; the command line is in `bench.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import GateError, PrumuxError, UsageError
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.timing.interleave import Timing, interleave, percentile_ms, speedup

from .engines import ANY_VOCAB, Opened
from .power import Meter

ROUNDS = 9
LEAST_MS = 200.0
"""In a round every engine repeats its runs for about so long, so that small batches are timed
as well, and a slow engine does not take a fast one's repeats."""
TIMING = "wall clock of whole runs, inputs and logits on the host, interleaved, warmed up"
Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """One engine at one batch size."""

    name: str
    batch: int
    rows_per_second: float
    """Rows are sentences, or pairs of them."""
    rows_per_second_low: float
    rows_per_second_high: float
    batch_ms_p50: float
    """Of runs of a whole batch, as are the others; `runs` of them were timed."""
    batch_ms_p90: float
    batch_ms_p99: float
    runs: int
    throughput_ratio: float
    """Median over rounds against the first engine."""
    throughput_ratio_low: float
    throughput_ratio_high: float
    mean_watts: float | None = None
    """Of the processor while this engine ran; None = its counters cannot be read."""
    rows_per_second_per_watt: float | None = None
    """The same as rows per joule."""


def measure(  # noqa: PLR0917 - the last two have defaults
    opened: Sequence[Opened],
    runs: Sequence[Sequence[Inputs]],
    batch: int,
    rounds: int,
    meters: Sequence[Meter | None] | None = None,
    cores: CoreMonitor | None = None,
) -> list[Entry]:
    """Time engines in turn on their inputs, batches of `batch` rows.

    Args:
        opened: the engines; the first is what the others are compared with.
        runs: for each engine, the inputs of one round.
        batch: rows in each input.
        rounds: how often.
        meters: for each engine, its energy meter.
        cores: waits for near cores before each round.
    """
    meters = meters or [None] * len(opened)
    for _ in range(2):  # the first run of an engine is a slow one
        once = [_timed(x.engine.run, data) for x, data in zip(opened, runs, strict=True)]
    repeats = [max(1, round(LEAST_MS / max(sum(ms), 1e-3))) for ms in once]
    single: list[list[float]] = [[] for _ in opened]
    joules: list[list[float]] = [[] for _ in opened]

    works = [
        partial(_round, x.engine.run, list(data) * times, took, spent, meter)
        for x, data, times, took, spent, meter in zip(
            opened, runs, repeats, single, joules, meters, strict=True
        )
    ]
    timings = interleave(works, rounds, warmup=0, cores=cores)
    each = sum(len(x["input_ids"]) for x in runs[0])
    per_row = [
        Timing(tuple(ms / (each * times) for ms in timing.rounds_ms))
        for timing, times in zip(timings, repeats, strict=True)
    ]
    return [
        _entry(
            x.name,
            batch,
            timings=(per_row[0], timing),
            single=single[i],
            joules_a_row=sum(joules[i]) / (rounds * each * repeats[i]) if meters[i] else None,
        )
        for i, (x, timing) in enumerate(zip(opened, per_row, strict=True))
    ]


def _round(
    run: Callable[[Inputs], Any],
    inputs: Sequence[Inputs],
    took: list[float],
    joules: list[float],
    meter: Meter | None,
) -> None:
    """One engine's part of a round; appends milliseconds of each run, and joules of all."""
    before = meter.read() if meter else ()
    took.extend(_timed(run, inputs))
    if meter:
        joules.append(meter.spent(before, meter.read()))


def _entry(
    name: str,
    batch: int,
    *,
    timings: tuple[Timing, Timing],
    single: Sequence[float],
    joules_a_row: float | None,
) -> Entry:
    """`timings`: milliseconds a row of the first engine, and of this one."""
    timing, gain = timings[1], speedup(*timings)
    seconds = sum(timing.rounds_ms) / len(timing.rounds_ms) / 1000
    return Entry(
        name,
        batch,
        1000 / timing.median_ms,
        1000 / timing.high_ms,
        1000 / timing.low_ms,
        percentile_ms(single, 0.5),
        percentile_ms(single, 0.9),
        percentile_ms(single, 0.99),
        len(single),
        gain.median,
        gain.low,
        gain.high,
        joules_a_row / seconds if joules_a_row else None,
        1 / joules_a_row if joules_a_row else None,
    )


def _timed(run: Callable[[Inputs], Any], inputs: Sequence[Inputs]) -> list[float]:
    """Milliseconds of each run."""
    found = []
    for x in inputs:
        start = time.perf_counter()
        run(x)
        found.append((time.perf_counter() - start) * 1000)
    return found


def try_all(opened: Sequence[Opened], data: Sequence[Sequence[Inputs]]) -> None:
    """Run every engine on all its inputs, so that what cannot run is named.

    Raises:
        UsageError: an engine does not take these inputs.
        GateError: its answers are no numbers.
    """
    for x, inputs in zip(opened, data, strict=True):
        for one in inputs:
            _try(x, one)


def _try(opened: Opened, inputs: Inputs) -> None:
    shape = "x".join(map(str, inputs["input_ids"].shape))
    try:
        found = opened.engine.run(inputs)
    except PrumuxError:
        raise
    except Exception as error:  # engines have no common class for their own
        first = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"'{opened.name}' cannot run int64 inputs of {shape}: {first}\n"
            "try another --batch or --length"
        ) from error
    odd = found.size - int(np.isfinite(found).sum())
    if odd:
        raise GateError(
            f"{odd} of {found.size} logits that '{opened.name}' gives are nan or infinite, "
            f"on inputs of {shape}: its speed means nothing\n"
            "export it again, in fp32 if it was not: --target 'onnx{precision=fp32}'"
        )


def inputs_of(
    to: Opened,
    opened: Sequence[Opened],
    batch: int,
    length: int | None,
    rows: Encoded | None,
) -> list[Inputs]:
    """What an engine runs in a round: the batches that stand for the data, or one."""
    if rows is not None:
        return [_fitting(x.inputs(), to) for x in workload(rows, batch, None)]
    vocab = min(ANY_VOCAB, *(x.vocab for x in opened))
    ids = np.random.default_rng(0).integers(vocab // 2, vocab, (batch, length or 1))
    return [_fitting({"input_ids": ids, "attention_mask": np.ones_like(ids)}, to)]


def _fitting(inputs: Inputs, to: Opened) -> Inputs:
    """With token types where the engine takes them, without where it does not."""
    found = dict(inputs)
    if not to.token_types:
        found.pop("token_type_ids", None)
    elif "token_type_ids" not in found:
        found["token_type_ids"] = np.zeros_like(found["input_ids"])
    return found
