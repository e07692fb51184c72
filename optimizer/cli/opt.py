"""The command line: `prumux-opt MODEL --budget 2%`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.search.presets import EFFORTS

from .console import Parser, device_name, guarded, positive, print_json, seconds, version

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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code and never lets a traceback out."""
    return guarded("prumux-opt", _main, argv, "repeat the command with --resume to go on")


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
    request = _request(options, arguments)
    if options.dry_run:
        from prumux.optimizer.run.plan import plan
        from prumux.optimizer.run.time_estimate import estimate

        # Nothing is written, so what lies in the folder is in nobody's way.
        todo = plan(replace(request, force=True), progress)
        print_json({**todo.describe(), "estimate": estimate(todo)})
        return 0
    from prumux.optimizer.run.run import run

    result = run(request, progress)
    if options.json:
        print_json(result.report)
    else:
        from prumux.optimizer.report.report import print_table, summary

        print_table(result.report, sys.stdout)
        print("\n".join(summary(result.report, result.folder)))  # noqa: T201
    if not result.met:
        progress.say(f"prumux-opt: no candidate met the budget: {result.report['reason']}")
        return 3
    return 0


def _request(options: argparse.Namespace, arguments: Sequence[str]) -> Any:
    from prumux.optimizer.run.request import Request
    from prumux.optimizer.search.budget import Budget

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
        device=options.device,
        seed=options.seed,
        effort=options.effort,
        time_limit_s=options.time_limit,
        workers=options.workers,
        resume=options.resume,
        force=options.force,
        command=shlex.join(["prumux-opt", *arguments]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="prumux-opt",
        description="Make the fastest engine of a trained encoder that keeps a loss budget.",
        epilog=EPILOG,
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
    add("--time-limit", type=seconds, metavar="30m", help="finish in about this time")
    add("--batch", type=positive, default=32, metavar="N", help="serving batch (default 32)")
    add("--length", type=positive, metavar="N", help="serving length (default: the data's)")
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="cuda",
        help="for scores and training: cpu, cuda (trains on all GPUs), cuda:0; default auto",
    )
    add("--seed", type=int, default=0, metavar="N")
    add(
        "--workers",
        default="1",
        metavar="4",
        help="or ray://HOST:PORT: build the candidates of a space (quick, or --passes with "
        "a|b) side by side, with the same result; other efforts gain nothing by it",
    )
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    add("--force", action="store_true", help="replace an earlier result")
    add("--dry-run", action="store_true", help="print the resolved plan and do nothing")
    add("--demo", action="store_true", help="make a small real model and data, then run")
    add("--list-passes", action="store_true", help="every pass and target with its options")
    add("--json", action="store_true", help="one JSON document on stdout, logs on stderr")
    add("-q", "--quiet", action="store_true", help="errors only")
    add("-v", "--verbose", action="count", default=0, help="-vv shows tracebacks")
    add("--version", action="version", version=version())
    return parser


def _list_passes(as_json: bool) -> int:
    from dataclasses import asdict

    from prumux.optimizer.pipeline.registry import all_passes, all_targets

    groups = {
        "passes": [p.describe() for p in all_passes()],
        "targets": [t.describe() for t in all_targets()],
    }
    if as_json:
        print_json({name: [asdict(x) for x in found] for name, found in groups.items()})
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


if __name__ == "__main__":
    sys.exit(main())
