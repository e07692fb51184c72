"""The options of `prumux-bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from prumux.optimizer.base.processors import cpu_threads, most_threads
from prumux.optimizer.cli.console import Parser, positive, version
from prumux.optimizer.data.predict import ARRIVALS

from . import cost_command
from .engine_kinds import KINDS
from .run import ROUNDS

EPILOG = """\
examples:
  prumux-bench my-model my-model-prumux --target onnx --data my-data
  prumux-bench a.onnx b.onnx --batch 1,8,32 --length 128
  prumux-bench --text my-model my-model-prumux --target onnx
  prumux-bench --verify my-model-prumux
  prumux-bench --measure-costs costs.json my-model --batch 32 --length 128

A and B: Hugging Face folders (torch eager; --compile, or --target to export them), .onnx and
.plan files, folders that prumux-opt wrote. Ratios are against A, timed in the same rounds.
Each model runs in its fastest graph, and at its own best batch size if none is given.
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser of all options."""
    made = Parser(
        prog="prumux-bench",
        description="Throughput and latency of engines side by side, in interleaved rounds.",
        epilog=EPILOG,
    )
    made.add_argument(
        "models",
        nargs="*",
        metavar="A",
        help="models to compare; ratios are against the first",
    )
    _add_other_uses(made)
    _add_engines(made)
    _add_rows(made)
    _add_output(made)
    return made


def _add_other_uses(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--verify",
        metavar="ARTIFACT",
        help="ask the engine of a result for its certified answers; exit 4 if they changed",
    )
    add(
        "--url",
        default="",
        metavar="HOST:PORT",
        help="with --verify: ask the engine of a running Triton server, by HTTP",
    )
    add(
        "--measure-costs",
        type=Path,
        metavar="FILE",
        help="time shapes of a model here, for prumux-opt --costs FILE anywhere; needs "
        "config.json only, no weights and no data",
    )
    add(
        "--mix",
        type=cost_command.mixed,
        metavar="2,5,10",
        help="with --measure-costs: rows that may share a pass, or none",
    )


def _add_engines(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", metavar="TEXT", help="export folders to this target, such as onnx")
    add(
        "--engines",
        type=_kinds,
        metavar="KIND,...",
        help=f"run each model in these engines: {', '.join(KINDS)}, or all that can run here",
    )
    add(
        "--keep-graphs",
        type=Path,
        metavar="DIR",
        help="with --target: leave the exported graphs in this folder",
    )
    add("--as-is", action="store_true", help="do not try fusions on A, if it is a graph")
    add("--compile", action="store_true", help="run Hugging Face models with torch.compile")
    add("--threads", type=_threads, metavar="N", help="CPU threads (default: all)")
    add(
        "--device", default="auto", choices=["auto", "cpu", "cuda"], help="for torch and .onnx"
    )


def _add_rows(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--batch",
        type=_batches,
        metavar="1,8,32",
        help="rows per run (default: for each model its own best size)",
    )
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
    add(
        "--text",
        action="store_true",
        help="time from text to label, on the texts of --data or a result's certified answers",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--plot",
        type=Path,
        metavar="FILE",
        help="plot throughput by batch size, as png or svg",
    )
    add("--json", action="store_true", help="one JSON document on stdout")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("-v", "--verbose", action="count", default=0, help="-vv shows tracebacks")
    add("--version", action="version", version=version())


def _batches(text: str) -> tuple[int, ...]:
    return tuple(positive(x.strip()) for x in text.split(","))


def _kinds(text: str) -> tuple[str, ...]:
    if text == "all":
        return tuple(KINDS)
    found = tuple(x.strip() for x in text.split(","))
    for x in found:
        if x not in KINDS:
            raise argparse.ArgumentTypeError(
                f"{x!r} is no kind of engine\n"
                f"write --engines all, or some of {', '.join(KINDS)}"
            )
    return found


def _threads(text: str) -> int:
    given, most, there = positive(text), most_threads(), cpu_threads()
    if given > most:
        raise argparse.ArgumentTypeError(
            f"{given} is over {most}, four times the processors that may be used ({there})\n"
            f"write --threads {there}, or leave it out"
        )
    return given
