"""The command `prumux-bench --measure-costs FILE MODEL`."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import torch

from prumux.optimizer.base.devices import device
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.cli.console import print_json, shown
from prumux.optimizer.pipeline.costs import TargetCosts
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.timing.calibration import ROUNDS

from .measure_costs import MIXED, CostOptions, machine, measure_costs

MOST_MIXED = 100


def run(options: argparse.Namespace, arguments: Sequence[str], length: int | None) -> int:
    """Measure the costs of one model on this machine, and print them."""
    again = f"write: prumux-bench --measure-costs {options.measure_costs}"
    if len(options.models) != 1:
        raise UsageError(
            f"--measure-costs takes one model, {len(options.models)} given\n"
            f"{again} MODEL, where a folder with config.json is enough"
        )
    if options.data is not None or options.verify is not None or options.compile:
        raise UsageError(
            "--measure-costs times random rows: leave --data, --verify and --compile out\n"
            f"{again} {options.models[0]} --length 128"
        )
    batch, *more = options.batch or (32,)
    if more:
        raise UsageError(
            f"--measure-costs is for one batch size, {1 + len(more)} given\n"
            f"{again} {options.models[0]} --batch {batch}"
        )
    threads = options.threads or cpu_threads()
    device(options.device)  # raises at once if the device does not exist
    torch.set_num_threads(threads)
    asked = CostOptions(
        model=options.models[0],
        file=options.measure_costs,
        target=options.target,
        batch=batch,
        length=length or 128,
        mixed=MIXED if options.mix is None else options.mix,
        rounds=options.rounds or ROUNDS,
        threads=threads,
        device=options.device,
    )
    command = shlex.join(["prumux-bench", *arguments])
    found = measure_costs(asked, command, Progress(0 if options.quiet else 1))
    if options.json:
        print_json(
            {"file": str(asked.file), "targets": {k: asdict(x) for k, x in found.items()}}
        )
    else:
        with shown():
            print("\n".join(lines_of(found, asked)))  # noqa: T201
    return 0


def lines_of(found: Mapping[str, TargetCosts], options: CostOptions) -> list[str]:
    """Format the lines to print."""
    here = machine(options.threads)
    name = ", ".join(x for x in (here.get("gpu", ""), here["cpu"]) if x)
    lines = [
        f"{options.file}: costs of {options.model} on {name}",
        f"batch {options.batch}, {options.length} tokens",
        f"{'target':<40}{'dense, ms':>10}{'error':>7}  mixed rows",
    ]
    for target, x in found.items():
        mixed = ", ".join(map(str, x.mixed)) or "none"
        lines.append(f"{target:<40}{x.single.dense_ms:>10.3g}{x.error:>7.1%}  {mixed}")
    usable = [x for x in found if parse_target(x).baseline().timed_as in found]
    lines += [
        f"use them anywhere: prumux-opt MODEL --data DIR --budget 2% --target '{target}' "
        f"--costs {options.file.name}"
        for target in usable
    ]
    return lines


def mixed(text: str) -> tuple[int, ...]:
    """Parse an option value: numbers of rows, each at least 2, or `none`."""
    if text == "none":
        return ()
    found = [x.strip() for x in text.split(",")]
    sound = (x.isdecimal() and x.isascii() and 2 <= int(x[:4]) <= MOST_MIXED for x in found)
    if not all(sound):
        raise argparse.ArgumentTypeError(
            f"'{text:.40}' is no list of rows from 2 to {MOST_MIXED}: write 2,5,10 or none"
        )
    return tuple(dict.fromkeys(map(int, found)))
