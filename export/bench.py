"""The command line `prumux-bench A B ...`: throughput and latency side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prumux.optimizer.console import Parser, device, guarded, positive, print_json, version
from prumux.optimizer.data import read_rows
from prumux.optimizer.encode import Encoded, encode
from prumux.optimizer.environment import cpu_threads, provenance
from prumux.optimizer.errors import MissingError, PrumuxError, UsageError
from prumux.optimizer.evaluate import workload
from prumux.optimizer.measure import interleave, percentile_ms, ratio
from prumux.optimizer.progress import Progress
from prumux.optimizer.registry import parse_target
from prumux.optimizer.tables import find_files

from .engines import ANY_VOCAB, Opened, open_engine

EPILOG = """\
examples:
  prumux-bench my-model my-model-prumux --target onnx --data my-data
  prumux-bench a.onnx b.onnx --batch 1,8,32 --length 128

A and B: Hugging Face folders (torch eager; --compile, or --target to export them), .onnx
files, folders that prumux-opt wrote. Ratios are against the first, in the same rounds.
"""
ROUNDS = 9
LEAST_MS = 200.0
"""A round repeats its runs for about so long, so that small batches are timed as well."""
Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class Entry:
    """One engine at one batch size."""

    name: str
    batch: int
    rows_per_second: float
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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never lets a traceback out."""
    return guarded("prumux-bench", _main, argv, "repeat the command")


def measure(
    opened: Sequence[Opened], runs: Sequence[Sequence[Inputs]], batch: int, rounds: int
) -> list[Entry]:
    """Time engines in turn on their inputs, batches of `batch` rows.

    Args:
        opened: the engines; the first is what the others are compared with.
        runs: for each engine, the inputs of one round.
        batch: rows in each input.
        rounds: how often.
    """
    for _ in range(2):  # the first run of an engine is a slow one
        once = [_timed(x.engine.run, data) for x, data in zip(opened, runs, strict=True)]
    repeats = max(1, round(LEAST_MS / max(sum(min(once, key=sum)), 1e-3)))
    single: list[list[float]] = [[] for _ in opened]

    def round_of(i: int) -> Callable[[], None]:
        def work() -> None:
            for _ in range(repeats):
                single[i].extend(_timed(opened[i].engine.run, runs[i]))

        return work

    timings = interleave([round_of(i) for i in range(len(opened))], rounds, warmup=0)
    rows = repeats * sum(len(x["input_ids"]) for x in runs[0])
    return [
        Entry(
            x.name,
            batch,
            1000 * rows / timing.median_ms,
            1000 * rows / timing.high_ms,
            1000 * rows / timing.low_ms,
            percentile_ms(times, 0.5),
            percentile_ms(times, 0.9),
            percentile_ms(times, 0.99),
            len(times),
            gain.median_ms,
            gain.low_ms,
            gain.high_ms,
        )
        for x, timing, times in zip(opened, timings, single, strict=True)
        for gain in [ratio(timings[0], timing)]
    ]


def _timed(run: Callable[[Inputs], Any], inputs: Sequence[Inputs]) -> list[float]:
    """Milliseconds of each run."""
    found = []
    for x in inputs:
        start = time.perf_counter()
        run(x)
        found.append((time.perf_counter() - start) * 1000)
    return found


def _main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    progress = Progress(0 if options.quiet else 1)
    target = None if options.target is None else parse_target(options.target)
    where, threads = device(options.device), options.threads or cpu_threads()
    length = _length(options)
    if options.plot is not None:
        _library()
    torch.set_num_threads(threads)
    opened = []
    with progress.task("opening", len(options.models)) as step:
        for name in options.models:
            opened.append(open_engine(name, target, threads, where, options.compile))
            step()
    _check(opened, length)
    rows = _texts(opened, options.data) if length is None else None
    entries: list[Entry] = []
    with progress.task("timing", len(options.batch)) as step:
        for batch in options.batch:
            data = [_inputs(x, opened, batch, length, rows) for x in opened]
            _try(opened, data)
            entries += measure(opened, data, batch, options.rounds)
            step()
    report = _report(opened, entries, options, arguments)
    if options.json:
        print_json(report)
    else:
        _print(report, options)
    if options.plot is not None:
        _plot(entries, options.plot)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="prumux-bench",
        description="Throughput and latency of engines side by side, in interleaved rounds.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="A", help="what to compare; the first is the yardstick")
    add("--target", metavar="TEXT", help="run folders on this, such as onnx")
    add("--batch", type=_batches, default=(32,), metavar="1,8,32", help="rows a run")
    add("--length", metavar="N", help="tokens a row, or: data (default 128; data with --data)")
    add("--data", metavar="FILE", help="texts, for --length data: a file or folder")
    add("--rounds", type=positive, default=ROUNDS, metavar="N")
    add("--threads", type=positive, metavar="N", help="CPU threads (default: all)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="for torch")
    add("--compile", action="store_true", help="Hugging Face models through torch.compile")
    add("--plot", type=Path, metavar="FILE", help="throughput by batch size, as png or svg")
    add("--json", action="store_true", help="one JSON document on stdout")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("-v", "--verbose", action="count", default=0, help="-vv shows tracebacks")
    add("--version", action="version", version=version())
    return parser


def _batches(text: str) -> tuple[int, ...]:
    return tuple(positive(x.strip()) for x in text.split(","))


def _length(options: argparse.Namespace) -> int | None:
    """Tokens of every row; None = the lengths of the data."""
    text = options.length or ("128" if options.data is None else "data")
    if text == "data":
        if options.data is None:
            raise UsageError("--length data needs texts: add --data DIR, or give --length 128")
        return None
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"--length is '{text}': write a number of tokens, or data")
    return int(text)


def _check(opened: Sequence[Opened], length: int | None) -> None:
    """Every model takes rows of this length."""
    for x in opened:
        if x.encoder is None or length is None:
            continue
        most = x.encoder.most_tokens
        if length > most:
            raise UsageError(
                f"--length {length} is over the {most} positions of '{x.name}': "
                f"--length {most}"
            )


def _try(opened: Sequence[Opened], data: Sequence[Sequence[Inputs]]) -> None:
    """Run every engine once, so that what cannot run is named."""
    for x, inputs in zip(opened, data, strict=True):
        try:
            x.engine.run(inputs[0])
        except PrumuxError:
            raise
        except Exception as error:  # engines have no common class for their own
            first = str(error).strip().split("\n")[0][:200]
            shape = "x".join(map(str, inputs[0]["input_ids"].shape))
            raise UsageError(
                f"'{x.name}' cannot run int64 inputs of {shape}: {first}\n"
                "try another --batch or --length"
            ) from error


def _texts(opened: Sequence[Opened], data: str) -> Encoded:
    """The validation texts, or those of a file, tokenised as the first model that can does."""
    for x in opened:
        if x.tokenizer is not None and x.encoder is not None and x.task is not None:
            path = Path(data)
            split = None
            if path.is_dir():
                split = "validation" if "validation" in find_files(path) else None
            rows = read_rows(path if path.exists() else data, x.task, split=split)
            return encode(rows, x.tokenizer, x.encoder, x.task)
    raise UsageError(
        "--length data needs a tokenizer, and none of the models has one\n"
        "name a folder first, or give --length 128"
    )


def _inputs(
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


def _report(
    opened: Sequence[Opened],
    entries: Sequence[Entry],
    options: argparse.Namespace,
    arguments: Sequence[str],
) -> dict[str, Any]:
    """What was measured; `throughput_ratio` at the batch where the first engine is fastest."""
    first = [x for x in entries if x.name == opened[0].name]
    best = max(first, key=lambda x: x.rows_per_second).batch
    last = next(x for x in reversed(entries) if x.batch == best)
    return {
        "schema_version": 1,
        "throughput_ratio": last.throughput_ratio,
        "at_batch": best,
        "entries": [asdict(x) for x in entries],
        "engines": {x.name: dict(x.engine.describe()) for x in opened},
        "file_bytes": {x.name: x.size_bytes for x in opened},
        "length": options.length or ("data" if options.data else "128"),
        "rounds": options.rounds,
        "timing": "wall clock of whole runs, inputs on the host, interleaved, warmed up",
        **provenance(),
        "command": shlex.join(["prumux-bench", *arguments]),
    }


def _print(report: Mapping[str, Any], options: argparse.Namespace) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 100)
    table = Table(box=box.SIMPLE_HEAD)
    for name in ("", "batch", "rows/s", "p50 ms", "p90 ms", "p99 ms", "against the first"):
        table.add_column(name, justify="right" if name else "left")
    for x in report["entries"]:
        low, high = x["throughput_ratio_low"], x["throughput_ratio_high"]
        table.add_row(
            x["name"],
            str(x["batch"]),
            f"{x['rows_per_second']:.0f}",
            *(f"{x[f'batch_ms_{p}']:.2f}" for p in ("p50", "p90", "p99")),
            f"{x['throughput_ratio']:.2f}x  [{low:.2f}, {high:.2f}]",
        )
    console.print(table)
    for name, about in report["engines"].items():
        print(f"{name}: {', '.join(f'{k} {v}' for k, v in about.items())}")  # noqa: T201
    print(f"length {report['length']}; {report['timing']}; {options.rounds} rounds")  # noqa: T201


def _plot(entries: Sequence[Entry], path: Path) -> None:
    """Throughput by batch size, a line an engine."""
    plt = _library()
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(x.name for x in entries):
        of = [x for x in entries if x.name == name]
        axes.plot([x.batch for x in of], [x.rows_per_second for x in of], "o-", label=name)
    axes.set(xscale="log", xlabel="batch", ylabel="rows per second")
    axes.legend()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _library() -> Any:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise MissingError("--plot needs matplotlib: pip install 'prumux[plot]'") from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    return plt


if __name__ == "__main__":
    sys.exit(main())
