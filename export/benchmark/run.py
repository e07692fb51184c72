"""Time engines side by side, in interleaved rounds; `cli.py` is the command line."""

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
from prumux.optimizer.data.predict import Arrivals, workload
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.timing.interleave import Timing, interleave, percentile_ms, speedup

from .engines import ANY_VOCAB, OpenedModel
from .power import Meter

ROUNDS = 9
LEAST_MS = 200.0
"""Time for which each engine repeats its runs in a round. So small batches are timed as
exactly as large batches. The number of repeats does not depend on the other engines."""
TIMING = "wall clock of whole runs, inputs and logits on the host, interleaved, warmed up"
Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """The measurements of one engine at one batch size."""

    name: str
    batch: int
    rows_per_second: float
    """Throughput. A row is one text, or one pair of texts."""
    rows_per_second_low: float
    rows_per_second_high: float
    batch_ms_p50: float
    """Milliseconds of a run of a whole batch: a percentile over `runs` runs."""
    batch_ms_p90: float
    batch_ms_p99: float
    runs: int
    throughput_ratio: float
    """Throughput divided by the first engine's throughput: the median over rounds."""
    throughput_ratio_low: float
    throughput_ratio_high: float
    mean_watts: float | None = None
    """Power of the processor while this engine ran; None = no counters can be read."""
    rows_per_second_per_watt: float | None = None
    """Throughput divided by power. This equals rows per joule."""
    graph: str = ""
    """Name of the graph, such as `plain` or `fusion=all`, if the model has several graphs."""


def measure(  # noqa: PLR0917 - the last two have defaults
    opened: Sequence[OpenedModel],
    runs: Sequence[Sequence[Inputs]],
    batch: int | Sequence[int],
    rounds: int,
    meters: Sequence[Meter | None] | None = None,
    cores: CoreMonitor | None = None,
) -> list[Entry]:
    """Time engines in turn.

    Args:
        opened: the engines. Ratios are against the first engine.
        runs: the inputs of one round, for each engine.
        batch: rows of each input: one number for all engines, or one for each.
        rounds: number of timed rounds.
        meters: the energy meter of each engine; None = no meter.
        cores: waits until threads run on cores near each other, before each round.
    """
    meters = meters or [None] * len(opened)
    for _ in range(2):  # an engine's first run is slower
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
    sizes = [batch] * len(opened) if isinstance(batch, int) else batch
    each = [sum(len(x["input_ids"]) for x in data) for data in runs]
    per_row = [
        Timing(tuple(ms / (rows * times) for ms in timing.rounds_ms))
        for timing, rows, times in zip(timings, each, repeats, strict=True)
    ]
    return [
        _entry(
            x,
            sizes[i],
            timings=(per_row[0], timing),
            single=single[i],
            joules_a_row=sum(joules[i]) / (rounds * each[i] * repeats[i])
            if meters[i]
            else None,
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
    """Run an engine's part of a round. Append the time of each run and the total energy."""
    before = meter.read() if meter else ()
    took.extend(_timed(run, inputs))
    if meter:
        joules.append(meter.spent(before, meter.read()))


def _entry(
    opened: OpenedModel,
    batch: int,
    *,
    timings: tuple[Timing, Timing],
    single: Sequence[float],
    joules_a_row: float | None,
) -> Entry:
    """Summarise an engine. `timings` are times per row of the first engine and of this one."""
    timing, gain = timings[1], speedup(*timings)
    seconds = sum(timing.rounds_ms) / len(timing.rounds_ms) / 1000
    return Entry(
        opened.name,
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
        opened.graph,
    )


def _timed(run: Callable[[Inputs], Any], inputs: Sequence[Inputs]) -> list[float]:
    """Milliseconds of each run."""
    found = []
    for x in inputs:
        start = time.perf_counter()
        run(x)
        found.append((time.perf_counter() - start) * 1000)
    return found


def try_all(opened: Sequence[OpenedModel], data: Sequence[Sequence[Inputs]]) -> None:
    """Run every engine once on all its inputs, before timing starts.

    Raises:
        UsageError: an engine refuses the inputs.
        GateError: an engine's logits are nan or infinite.
    """
    for x, inputs in zip(opened, data, strict=True):
        for one in inputs:
            _try(x, one)


def _try(opened: OpenedModel, inputs: Inputs) -> None:
    shape = "x".join(map(str, inputs["input_ids"].shape))
    try:
        found = opened.engine.run(inputs)
    except PrumuxError:
        raise
    except Exception as error:  # the engines' errors have no common class
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


def inputs_of(  # noqa: PLR0917 - the last one has a default
    to: OpenedModel,
    opened: Sequence[OpenedModel],
    batch: int,
    length: int | None,
    rows: Encoded | None,
    arrivals: Arrivals = "sorted",
) -> list[Inputs]:
    """Make the inputs of one round: batches that represent the data, or one random batch.

    Args:
        to: the engine.
        opened: all engines. Random token ids exist in all their vocabularies.
        batch: rows per batch.
        length: tokens per random row; None = use the lengths of `rows`.
        rows: the data; None = random rows.
        arrivals: `sorted` = sort rows by length; `mixed` = keep the order of arrival.
    """
    if rows is not None:
        own = own_ids(to, opened, rows)
        return [_fitting(x.inputs(), to) for x in workload(own, batch, None, arrivals)]
    vocab = min(ANY_VOCAB, *(x.vocab for x in opened))
    ids = np.random.default_rng(0).integers(vocab // 2, vocab, (batch, length or 1))
    return [_fitting({"input_ids": ids, "attention_mask": np.ones_like(ids)}, to)]


def own_ids(to: OpenedModel, opened: Sequence[OpenedModel], rows: Encoded) -> Encoded:
    """Tokenise the texts of rows again, if an engine has another vocabulary.

    Args:
        to: the engine.
        opened: all engines. The first engine with a tokenizer has made the ids of `rows`.
        rows: the data.
    """
    first = next((x for x in opened if x.tokenizer is not None), to)
    if to.vocab == first.vocab or to.tokenizer is None or to.encoder is None:
        return rows
    return rows if rows.given is None else encode(rows.given, to.tokenizer, to.encoder)


def _fitting(inputs: Inputs, to: OpenedModel) -> Inputs:
    """Add or remove `token_type_ids`, as the engine needs."""
    found = dict(inputs)
    if not to.token_types:
        found.pop("token_type_ids", None)
    elif "token_type_ids" not in found:
        found["token_type_ids"] = np.zeros_like(found["input_ids"])
    return found
