"""The command line `prumux-bench A B ...`: throughput and latency side by side."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial

import torch

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.devices import device
from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.errors import GateError, UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.cli.console import guarded, positive, print_json, shown

from . import cost_command
from .arguments import parser
from .choose import choose
from .engines import OpenedModel
from .measured import Measured
from .opening import check_length, graph_folders, open_all, text_rows, token_rows
from .run import ROUNDS, Inputs, inputs_of, measure
from .show import plot, plotter, show
from .text import (
    PARTS,
    PREDICT_BATCH,
    check_texts,
    some_batches_of,
    text_lines,
    texts_of,
    time_texts,
)
from .verify import lines_of, open_artifact, speed, verify

VERIFY_BATCH = 32
"""Batch size that --verify times besides 1, if the user gives none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code. Errors never print a traceback."""
    return guarded("prumux-bench", _main, argv, "repeat the command")


def _main(arguments: list[str]) -> int:
    given = parser()
    options = given.parse_args(arguments)
    if options.url and options.verify is None:
        raise UsageError(
            f"--url is for --verify\nwrite: prumux-bench --verify RESULT --url {options.url}"
        )
    if options.measure_costs is not None:
        return cost_command.run(options, arguments, _length(options))
    if options.mix is not None:
        raise UsageError("--mix is for --measure-costs\nsee: prumux-bench --help")
    options.rounds = options.rounds or ROUNDS
    if options.verify is not None:
        return _verify(options, arguments)
    if not options.models:
        given.error("the following arguments are required: A")
    return _compare(options, arguments)


def _compare(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Time the models side by side."""
    if options.keep_graphs and not options.target:
        raise UsageError(
            "--keep-graphs keeps what --target exports, and there is none\n"
            "write --target onnx, or leave --keep-graphs out"
        )
    if options.engines and (options.target or options.compile):
        given = "--target" if options.target else "--compile"
        raise UsageError(
            f"--engines chooses the engines, {given} would not be used\n"
            f"leave one of them out, such as {given}"
        )
    progress = Progress(0 if options.quiet else 1)
    if options.text:
        return _text(options, arguments, progress)
    length = _length(options)
    device(options.device)  # raises at once if the device does not exist
    plt = None if options.plot is None else plotter(options.plot)
    folders = graph_folders(options)
    opened, not_run = open_all(options, folders, progress)
    check_length(opened, length)
    rows = token_rows(opened, options.data) if length is None else None
    cores = CoreMonitor()

    def inputs(to: OpenedModel, batch: int) -> list[Inputs]:
        return inputs_of(to, opened, batch, length, rows, options.arrivals)

    with progress.task("trying", 1) as step:
        choices = choose(opened, options.batch, inputs, cores)
        step()
    measured = Measured(choices, options.batch, options.rounds, cores)
    with progress.task("timing", len(options.batch or (0,))) as step:
        stopped = measured.run(measure, step)
    report = {**measured.report(), **provenance(cores)}
    report["not_run"] = {**not_run, **choices.not_run}
    report["arrivals"] = options.arrivals
    report["length"] = options.length or ("data" if options.data else "128")
    report["command"] = shlex.join(["prumux-bench", *arguments])
    if options.json:
        print_json(report)
    else:
        with shown():
            show(report)
    if plt is not None:
        plot(plt, measured.entries, options.plot)
    if stopped is not None:
        raise stopped
    return 0


def _text(options: argparse.Namespace, arguments: Sequence[str], progress: Progress) -> int:
    """Time models from text to label."""
    if options.length or options.plot or len(options.batch or (1,)) > 1:
        raise UsageError(
            "--text takes texts as they are, and one batch size: --length, --plot and several "
            "sizes are not for it\nwrite: prumux-bench --text A B --data DIR --batch 32"
        )
    opened, not_run = open_all(options, graph_folders(options), progress)
    check_texts(opened)
    read = None if options.data is None else partial(text_rows, opened, options.data)
    rows, cores = texts_of(options.models, read), CoreMonitor()
    batch = (options.batch or (PREDICT_BATCH,))[0]
    with progress.task("trying", 1) as step:
        choices = choose(opened, (batch,), partial(some_batches_of, rows), cores)
        step()
    chosen = [x.opened for x in choices.best_at(batch)]
    threads = options.threads or cpu_threads()
    found = time_texts(chosen, rows, batch, options.rounds, threads=threads, cores=cores)
    if options.json:
        engines = {x.name: dict(x.engine.describe()) for x in chosen}
        command = shlex.join(["prumux-bench", *arguments])
        report = {"schema_version": 1, "text": [asdict(x) for x in found], "engines": engines}
        report |= {"not_run": {**not_run, **choices.not_run}, "rounds": options.rounds}
        print_json({**report, "parts": PARTS, "command": command, **provenance(cores)})
    else:
        print("\n".join(text_lines(found)))  # noqa: T201
    return 0


def _verify(options: argparse.Namespace, arguments: Sequence[str]) -> int:
    """Check that an artifact gives its certified answers on this machine.

    Raises:
        GateError: files, logits or the loss differ by more than is allowed.
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
    batches = sorted({1, *(options.batch or (VERIFY_BATCH,))})
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


def _length(options: argparse.Namespace) -> int | None:
    """Number of tokens per row; None = the lengths of the data's rows."""
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


if __name__ == "__main__":
    sys.exit(main())
