"""The command line `prumux-bench A B ...`: throughput and latency side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from itertools import chain, count
from pathlib import Path
from typing import Any

import torch

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.devices import device
from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.errors import GateError, PrumuxError, UsageError
from prumux.optimizer.base.processors import cpu_threads, most_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.cli.console import Parser, guarded, positive, print_json, shown, version
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.predict import ARRIVALS
from prumux.optimizer.data.rows import read_texts
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.pipeline.registry import parse_target

from .engines import OpenedModel, in_layouts, open_engine
from .power import meter
from .run import ROUNDS, TIMING, Entry, inputs_of, measure, try_all
from .show import plot, plotter, show
from .verify import lines_of, open_artifact, speed, verify

EPILOG = """\
examples:
  prumux-bench my-model my-model-prumux --target onnx --data my-data
  prumux-bench a.onnx b.onnx --batch 1,8,32 --length 128
  prumux-bench --verify my-model-prumux

A and B: Hugging Face folders (torch eager; --compile, or --target to export them), .onnx and
.plan files, folders that prumux-opt wrote. Ratios are against A, timed in the same rounds.
"""
DEVICES = ("auto", "cpu", "cuda")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never lets a traceback out."""
    return guarded("prumux-bench", _main, argv, "repeat the command")


def _main(arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.url and options.verify is None:
        raise UsageError(
            f"--url is for --verify\nwrite: prumux-bench --verify RESULT --url {options.url}"
        )
    if options.verify is not None:
        return _verify(options, arguments)
    if not options.models:
        parser.error("the following arguments are required: A")
    progress = Progress(0 if options.quiet else 1)
    target = None if options.target is None else parse_target(options.target)
    threads, length = options.threads or cpu_threads(), _length(options)
    device(options.device)  # raises at once if the device does not exist
    plt = None if options.plot is None else plotter(options.plot)
    torch.set_num_threads(threads)
    opened = []
    pairs = zip(options.models, _distinct(options.models), strict=True)
    wanted = [
        (name, f"{label} (ragged)" if i else label, layout)
        for name, label in pairs
        for i, layout in enumerate(in_layouts(name, target, options.arrivals))
    ]
    with progress.task("opening", len(wanted)) as step:
        for name, label, layout in wanted:
            x = open_engine(name, layout, threads, options.device, options.compile)
            opened.append(replace(x, name=label))
            step()
    _check(opened, length)
    rows = _texts(opened, options.data) if length is None else None
    meters = [meter(x.engine.describe().get("device", "cpu")) for x in opened]
    data = {
        n: [inputs_of(x, opened, n, length, rows, options.arrivals) for x in opened]
        for n in options.batch
    }
    for inputs in data.values():
        try_all(opened, inputs)
    entries, stopped, cores = list[Entry](), None, CoreMonitor()
    energy = [x for x, _ in meters]
    with progress.task("timing", len(data)) as step:
        try:
            for batch, inputs in data.items():
                found = measure(opened, inputs, batch, options.rounds, energy, cores)
                entries += found
                step()
        except (KeyboardInterrupt, PrumuxError) as error:
            if not entries:
                raise
            stopped = error  # the measurements so far are shown first
    power = {x.name: text for x, (_, text) in zip(opened, meters, strict=True)}
    report = {**_report(opened, entries, options), **provenance(cores)}
    report |= {"command": shlex.join(["prumux-bench", *arguments]), "power": power}
    if options.json:
        print_json(report)
    else:
        with shown():
            show(report)
    if plt is not None:
        plot(plt, entries, options.plot)
    if stopped is not None:
        raise stopped
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="prumux-bench",
        description="Throughput and latency of engines side by side, in interleaved rounds.",
        epilog=EPILOG,
    )
    add = parser.add_argument
    add(
        "models",
        nargs="*",
        metavar="A",
        help="models to compare; ratios are against the first",
    )
    add(
        "--verify",
        metavar="ARTIFACT",
        help="ask the engine of a result for its certified answers; exit 4 if they changed",
    )
    add("--target", metavar="TEXT", help="export folders to this target, such as onnx")
    add("--batch", type=_batches, default=(32,), metavar="1,8,32", help="rows per run")
    add("--length", metavar="N", help="tokens per random row (default 128), or: data")
    add("--data", metavar="FILE", help="file or folder of texts that give the lengths")
    add(
        "--arrivals",
        default="sorted",
        choices=ARRIVALS,
        help="batches of --data: sorted by length, or mixed, as rows arrive; folders that "
        "--target exports then run padded and ragged",
    )
    add("--rounds", type=positive, default=ROUNDS, metavar="N", help="timed rounds")
    add("--threads", type=_threads, metavar="N", help="CPU threads (default: all)")
    add(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="for torch and .onnx"
    )
    add("--compile", action="store_true", help="run Hugging Face models with torch.compile")
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot throughput by batch size, as png or svg",
    )
    add(
        "--url",
        default="",
        metavar="HOST:PORT",
        help="with --verify: ask the engine of a running Triton server, by HTTP",
    )
    add("--json", action="store_true", help="one JSON document on stdout")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("-v", "--verbose", action="count", default=0, help="-vv shows tracebacks")
    add("--version", action="version", version=version())
    return parser


def _verify(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Check that an artifact answers here as it was certified.

    Raises:
        GateError: it does not.
    """
    if options.models:
        raise UsageError(
            f"--verify takes one result, not {options.models[0]} as well\n"
            f"write: prumux-bench --verify {options.verify}"
        )
    threads, cores = options.threads or cpu_threads(), CoreMonitor()
    torch.set_num_threads(threads)
    progress = Progress(0 if options.quiet else 1)
    with progress.task("verifying", 2) as step:
        opened = open_artifact(options.verify, threads, options.device, options.url)
        step()
        found = verify(opened)
        step()
    batches = sorted({1, *options.batch})
    entries = [] if found.faults else speed(opened, batches, options.rounds, cores)
    if options.json:
        report = {**asdict(found), "faults": found.faults, "threads": threads}
        command = shlex.join(["prumux-bench", *arguments])
        speeds = {"entries": [asdict(x) for x in entries], "command": command}
        print_json({**report, **speeds, **provenance(cores)})
    else:
        print("\n".join(lines_of(found, entries)))  # noqa: T201
    if found.faults:
        faults = "\n".join(found.faults)
        raise GateError(f"'{options.verify}' is not what was certified:\n{faults}")
    return 0


def _batches(text: str) -> tuple[int, ...]:
    return tuple(positive(x.strip()) for x in text.split(","))


def _distinct(names: Sequence[str]) -> list[str]:
    """Names made distinct: a repeated name gets a number."""
    found: list[str] = []
    for name in names:
        others = (f"{name} ({i})" for i in count(2))
        found.append(next(x for x in chain([name], others) if x not in found))
    return found


def _threads(text: str) -> int:
    given, most, there = positive(text), most_threads(), cpu_threads()
    if given > most:
        raise argparse.ArgumentTypeError(
            f"{given} is over {most}, four times the processors that may be used ({there})\n"
            f"write --threads {there}, or leave it out"
        )
    return given


def _length(options: argparse.Namespace) -> int | None:
    """Tokens per row; None = the lengths of the data."""
    text = options.length or ("128" if options.data is None else "data")
    if text != "data" and options.arrivals == "mixed":
        raise UsageError(
            f"--arrivals mixed needs rows of different lengths, not --length {text}\n"
            "add --data DIR, and leave --length out"
        )
    if text == "data":
        if options.data is None:
            raise UsageError("--length data needs texts: add --data DIR, or give --length 128")
        return None
    try:
        found = positive(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"--length: {error}: write a number of tokens, or data") from error
    if options.data is not None:
        raise UsageError(
            f"--length {found} times random rows of {found} tokens, --data {options.data} "
            "would not be read\nwrite --length data for the lengths of these texts, or leave "
            "--data out"
        )
    return found


def _check(opened: Sequence[OpenedModel], length: int | None) -> None:
    """Check that every model accepts rows of this length.

    Raises:
        UsageError: a model has fewer positions.
    """
    for x in opened:
        if x.encoder is None or length is None:
            continue
        most = x.encoder.most_tokens
        if length > most:
            raise UsageError(
                f"--length {length} is over the {most} positions of '{x.name}': "
                f"--length {most}"
            )


def _texts(opened: Sequence[OpenedModel], data: str) -> Encoded:
    """The validation texts, or those of a file, tokenised by the first model that can.

    Raises:
        UsageError: none of the models has a tokenizer.
    """
    for x in opened:
        if x.tokenizer is not None and x.encoder is not None and x.task is not None:
            path = Path(data)
            split = None
            if path.is_dir():
                split = "validation" if "validation" in find_files(path) else None
            rows = read_texts(path if path.exists() else data, x.task, split)
            return encode(rows, x.tokenizer, x.encoder)
    raise UsageError(
        "--length data needs a tokenizer, and none of the models has one\n"
        "name a folder first, or give --length 128"
    )


def _report(
    opened: Sequence[OpenedModel],
    entries: Sequence[Entry],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The JSON report; `throughput_ratio` is at the batch size where the first is fastest."""
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
        "arrivals": options.arrivals,
        "length": options.length or ("data" if options.data else "128"),
        "rounds": options.rounds,
        "timing": TIMING,
    }


if __name__ == "__main__":
    sys.exit(main())
