"""The command line: `prumux-opt MODEL --budget 2%`."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import shlex
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from .effort import EFFORTS
from .errors import PrumuxError, UsageError
from .progress import Progress

EPILOG = """\
examples:
  prumux-opt my-model --data my-data --budget 2%
  prumux-opt model.pt --train train.csv --validation dev.csv --budget 1%
  prumux-opt my-model --data my-data --passes 'prune{sparsity=0.6},slice,reconstruct'
  prumux-opt my-model --data my-data --passes 'prune{sparsity=0.4|0.6},slice' --budget 2%
  prumux-opt --demo

exit codes: 0 done, 1 the tool failed, 2 bad usage, file or config, 3 no candidate met the
budget, 4 a parity or safety gate failed, 5 something needed is missing, 130 interrupted
"""
INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Reports usage errors in prumux's own way."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}\nsee: prumux-opt --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never lets a traceback out."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "-vv" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _main(arguments)
    except PrumuxError as error:
        code, text = error.exit_code, str(error)
    except KeyboardInterrupt:
        code, text = INTERRUPTED, "interrupted; repeat the command with --resume to go on"
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except MemoryError:
        code, text = 1, "out of memory; try a smaller --batch"
    except OSError as error:
        code, text = 2, f"{error.strerror or error}: {error.filename or 'the output folder'}"
        if error.errno == errno.ENOSPC:
            text += "\nmake room and repeat the command with --resume"
    except Exception as error:  # a fault of prumux: one line, the traceback with -vv
        code = 1
        lines = str(error).splitlines() or [""]
        text = f"internal error: {type(error).__name__}: {lines[0]:.200}"
        text += "\nrun again with -vv for the traceback, and please report it"
    if verbose:
        traceback.print_exc()
    print(f"prumux-opt: {text}", file=sys.stderr)  # noqa: T201
    return code


def _main(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.list_passes:
        return _list_passes(options.json)
    level = 0 if options.quiet else 1 + options.verbose
    progress = Progress(level)
    if options.demo:
        from .demo import prepare

        options.model, options.data = prepare(progress)
        options.out = options.out or Path("prumux-demo/result")
        options.budget = options.budget or ("2%" if options.passes is None else None)
    if options.model is None:
        raise UsageError("no model given\nwrite: prumux-opt MODEL --budget 2%, or --demo")
    from . import job

    request = _request(options, arguments)
    if options.dry_run:
        _print_json(job.plan(request, progress).describe())
        return 0
    result = job.run(request, progress)
    if options.json:
        _print_json(result.report)
    else:
        from .report import print_table, summary

        print_table(result.report, sys.stdout)
        print("\n".join(summary(result.report, result.folder)))  # noqa: T201
    if not result.met:
        progress.say(f"prumux-opt: no candidate met the budget: {result.report['reason']}")
        return 3
    return 0


def _request(options: argparse.Namespace, arguments: Sequence[str]) -> Any:
    from .budget import Budget
    from .job import Request

    return Request(
        model=options.model,
        budget=None if options.budget is None else Budget.parse(options.budget),
        passes=options.passes,
        out=options.out,
        data=options.data,
        train=options.train,
        validation=options.validation,
        test=options.test,
        columns=_columns(options.columns),
        target=options.target,
        metric=options.metric,
        batch=options.batch,
        length=options.length,
        device=_device(options.device),
        seed=options.seed,
        effort=options.effort,
        time_limit_s=options.time_limit,
        resume=options.resume,
        force=options.force,
        command=shlex.join(["prumux-opt", *arguments]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="prumux-opt",
        description="Make the fastest engine of a trained encoder that keeps a loss budget.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help="Hugging Face folder or id, or model.pt")
    add("--budget", metavar="2%", help="points the metric may fall; 2%%rel = of the score")
    add("--passes", metavar="TEXT", help="run this pipeline; with a|b and --budget, search it")
    add("--data", metavar="DIR", help="folder with train.*, validation.*, test.*; or a hub id")
    add("--train", metavar="FILE", help="parquet, jsonl, csv or tsv")
    add("--validation", metavar="FILE", help="rows that the loss is certified on")
    add("--test", metavar="FILE", help="rows that are only reported")
    add("--columns", nargs="+", default=[], metavar="KEY=NAME", help="text_a=q label=y ...")
    add("--out", type=Path, metavar="DIR", help="result folder (default MODEL-prumux)")
    add("--target", default="onnx", metavar="TEXT", help="such as 'onnx{fusion=none}'")
    add("--metric", metavar="NAME", help="accuracy, f1, matthews_correlation, pearson, ...")
    add("--effort", choices=EFFORTS, default="quick", help="quick trains nothing")
    add("--time-limit", type=_seconds, metavar="30m", help="finish in about this time")
    add("--batch", type=_positive, default=32, metavar="N", help="serving batch (default 32)")
    add("--length", type=_positive, metavar="N", help="serving length (default: the data's)")
    add("--device", default="auto", choices=["auto", "cpu", "cuda"], help="for scores")
    add("--seed", type=int, default=0, metavar="N")
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    add("--force", action="store_true", help="replace an earlier result")
    add("--dry-run", action="store_true", help="print the resolved plan and do nothing")
    add("--demo", action="store_true", help="make a small real model and data, then run")
    add("--list-passes", action="store_true", help="every pass and target with its options")
    add("--json", action="store_true", help="one JSON document on stdout, logs on stderr")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("-v", "--verbose", action="count", default=0, help="-vv shows tracebacks")
    add("--version", action="version", version=_version())
    return parser


def _list_passes(as_json: bool) -> int:
    from dataclasses import asdict

    from .registry import all_passes, all_targets

    groups = {
        "passes": [p.describe() for p in all_passes()],
        "targets": [t.describe() for t in all_targets()],
    }
    if as_json:
        _print_json({name: [asdict(x) for x in found] for name, found in groups.items()})
        return 0
    for name, found in groups.items():
        print(f"{name}:")  # noqa: T201
        for entry in found:
            print(f"  {entry.name}: {entry.summary}")  # noqa: T201
            for option in entry.options:
                default = "required" if option.default is None else f"default {option.default}"
                print(f"    {option.name}: {option.type}, {default}. {option.help}")  # noqa: T201
    return 0


def _columns(pairs: Sequence[str]) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not name or not column:
            raise UsageError(
                f"--columns takes KEY=NAME, not '{pair}'\n"
                "write, say, --columns text_a=question"
            )
        found[name] = column
    return found


def _device(name: str) -> str:
    if name == "cpu":
        return name
    import torch

    if torch.cuda.is_available():
        return "cuda"
    if name == "cuda":
        from .errors import MissingError

        raise MissingError("no CUDA device is visible to torch; use --device cpu")
    return "cpu"


def _seconds(text: str) -> float:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time: write 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def _positive(text: str) -> int:
    if not re.fullmatch(r"\d{1,9}", text) or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def _version() -> str:
    from importlib import metadata

    return f"prumux {metadata.version('prumux')}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201


if __name__ == "__main__":
    sys.exit(main())
