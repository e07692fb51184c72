"""The command line: `prumux-opt MODEL --budget 2%`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.data.predict import ARRIVALS
from prumux.optimizer.search.presets import EFFORTS

from .console import (
    Parser,
    device_name,
    guarded,
    positive,
    print_json,
    seconds,
    shown,
    version,
)

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.configurable import Description

DESCRIPTION = """\
Make the fastest engine of a trained text encoder that stays within a loss budget.
"""
DATA_TEXT = "Default: train.*, validation.* and test.* files in the folder of MODEL."
EPILOG = """\
examples:
  prumux-opt my-model --data my-data --budget 2%
  prumux-opt model.pt --train train.csv --validation dev.csv --budget 1%
  prumux-opt my-model --data my-data --passes 'prune{sparsity=0.6},slice,reconstruct'
  prumux-opt my-model --data my-data --passes 'prune{sparsity=0.4|0.6},slice' --budget 2%
  prumux-opt --demo

exit codes:
  0  done
  1  prumux failed
  2  bad usage, file or configuration
  3  no candidate met the budget; the folder holds the unpruned engine
  4  a parity or safety check failed
  5  something needed is missing; the message says how to get it
  130  interrupted; go on with --resume
"""
Add = Callable[..., object]
"""The method `add_argument` of a parser or of a group of options."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code. Errors are printed, not raised."""
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
    if options.push_to_hub is not None:
        from prumux.optimizer.run.hub import check_repo

        check_repo(options.push_to_hub)
    if options.dry_run:
        from prumux.optimizer.run.plan import plan
        from prumux.optimizer.run.time_estimate import estimate

        # `force` allows an earlier result in the folder, because nothing is written.
        todo = plan(replace(request, force=True), progress)
        print_json({**todo.describe(), "estimate": estimate(todo)})
        return 0
    from prumux.optimizer.run.run import run

    result = run(request, progress)
    if options.json:
        print_json(result.report)
    else:
        from prumux.optimizer.report.encoding import report_of
        from prumux.optimizer.report.terminal import print_table, summary

        report = report_of(result.report, str(result.folder / "report.json"))
        with shown():
            print_table(report, sys.stdout)
            print("\n".join(summary(report, result.folder)))  # noqa: T201
    if options.push_to_hub is not None and result.met:
        from prumux.optimizer.run.hub import push_to_hub

        address = push_to_hub(result.folder, options.push_to_hub)
        progress.say(f"pushed to {address}, without certified_answers.jsonl")
    if not result.met:
        progress.say(f"prumux-opt: no candidate met the budget: {result.report['reason']}")
        return 3
    return 0


def _request(options: argparse.Namespace, arguments: Sequence[str]) -> Any:
    from prumux.optimizer.certificate.budget import Budget
    from prumux.optimizer.run.request import Request

    return Request(
        model=options.model,
        budget=None if options.budget is None else Budget.parse(options.budget),
        passes=options.passes,
        out=options.out,
        data=options.data,
        train=options.train,
        validation=options.validation,
        test=options.test,
        columns=_pairs("--columns", options.columns, "text_a=question"),
        labels=_pairs("--labels", options.labels, "0=positive"),
        certify_on_train=options.certify_on_train,
        pooling=options.pooling,
        dimensions=options.dimensions,
        stride=options.stride,
        target=options.target,
        metric=options.metric,
        batch=options.batch,
        length=options.length,
        costs=options.costs,
        arrivals=options.arrivals,
        device=options.device,
        seed=options.seed,
        effort=options.effort,
        time_limit_s=options.time_limit,
        workers=options.workers,
        resume=options.resume,
        force=options.force,
        keep_answers=options.keep_answers,
        command=shlex.join(["prumux-opt", *arguments]),
    )


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="prumux-opt",
        description=DESCRIPTION,
        epilog=EPILOG,
        usage="prumux-opt MODEL --budget 2%% [options]",
    )
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="Hugging Face folder or hub id, model.pt, or an earlier result of prumux-opt",
    )
    _add_search_options(parser.add_argument_group("what to make").add_argument)
    _add_data_options(parser.add_argument_group("data", DATA_TEXT).add_argument)
    _add_embedding_options(parser.add_argument_group("embedding models").add_argument)
    _add_engine_options(parser.add_argument_group("engine").add_argument)
    _add_run_options(parser.add_argument_group("the run").add_argument)
    _add_output_options(parser.add_argument_group("output").add_argument)
    return parser


def _add_search_options(add: Add) -> None:
    add(
        "--budget", metavar="2%", help="points the metric may fall; 2%%rel: share of the score"
    )
    add("--passes", metavar="TEXT", help="run this pipeline; with a|b and --budget, search it")
    add(
        "--effort",
        choices=EFFORTS,
        default="quick",
        help="default quick, which trains nothing",
    )
    add("--time-limit", type=seconds, metavar="30m", help="finish in about this time")
    add(
        "--metric",
        metavar="NAME",
        help="accuracy, balanced-accuracy, macro-f1, f1, micro-f1, pearson, ndcg@10, ...",
    )
    add("--demo", action="store_true", help="make a small model and data, and optimise it")


def _add_data_options(add: Add) -> None:
    add("--data", metavar="DIR", help="folder with train.*, validation.*, test.*; or a hub id")
    add("--train", metavar="FILE", help="rows to train on: parquet, jsonl, json, csv or tsv")
    add(
        "--validation",
        metavar="FILE",
        help="rows to certify the loss on; test: the test split of --data certifies",
    )
    add("--test", metavar="FILE", help="rows for the report only, used for no choice")
    add(
        "--columns",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=NAME",
        help="names of columns: text_a=q label=y",
    )
    add(
        "--labels",
        nargs="+",
        action="extend",
        default=[],
        metavar="VALUE=CLASS",
        help="the model's classes of the data's labels: 0=positive 1=negative",
    )
    add(
        "--certify-on-train",
        action="store_true",
        help="without validation rows, certify on half of the train rows, which the model may "
        "know by heart",
    )
    add(
        "--stride",
        type=positive,
        metavar="N",
        help="tokens of a long context that two windows share, to answer questions; "
        "default 128",
    )


def _add_embedding_options(add: Add) -> None:
    add(
        "--pooling",
        metavar="NAME",
        help="make an embedding model of an encoder without a head: mean, cls, max, ...",
    )
    add(
        "--dimensions",
        type=positive,
        metavar="N",
        help="keep the first N entries of an embedding model's vectors",
    )


def _add_engine_options(add: Add) -> None:
    add("--target", default="onnx", metavar="TEXT", help="default onnx; see --list-passes")
    add("--batch", type=positive, metavar="N", help="rows in a batch, default 32")
    add(
        "--length", type=positive, metavar="N", help="tokens in a row, default: as in the data"
    )
    add(
        "--costs",
        metavar="FILE",
        help="choose for the machine that this file of prumux-bench --measure-costs is of",
    )
    add(
        "--arrivals",
        choices=ARRIVALS,
        default="sorted",
        help="how rows reach the engine: sorted by length (default), or mixed, in their order",
    )


def _add_run_options(add: Add) -> None:
    add("--out", type=Path, metavar="DIR", help="result folder, default MODEL-prumux")
    add("--resume", action="store_true", help="go on where an interrupted run stopped")
    add("--force", action="store_true", help="replace an earlier result")
    add(
        "--no-keep-answers",
        dest="keep_answers",
        action="store_false",
        help="write no certified_answers.jsonl, which holds up to 256 texts of your data",
    )
    add(
        "--push-to-hub",
        metavar="OWNER/NAME",
        help="push a result that meets the budget to the Hugging Face hub; new repositories "
        "are private",
    )
    add("--seed", type=int, default=0, metavar="N", help="of every random choice, default 0")
    add(
        "--device",
        type=device_name,
        default="auto",
        metavar="NAME",
        help="to train and score on: auto (default), cpu, cuda (all GPUs), cuda:0",
    )
    add(
        "--workers",
        default="1",
        metavar="4",
        help="or ray://HOST:PORT: build candidates side by side, with the same result. Of use "
        "for effort quick and for --passes with a|b",
    )


def _add_output_options(add: Add) -> None:
    add("--dry-run", action="store_true", help="print the plan and a time estimate, then stop")
    add("--list-passes", action="store_true", help="print every pass and target with options")
    add(
        "--json", action="store_true", help="print one JSON document to stdout, logs to stderr"
    )
    add("-q", "--quiet", action="store_true", help="print errors only")
    add("-v", "--verbose", action="count", default=0, help="print more; -vv: tracebacks too")
    add("--version", action="version", version=version())


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
    with shown():
        _print_groups(groups)
    return 0


def _print_groups(groups: Mapping[str, Sequence[Description]]) -> None:
    for name, found in groups.items():
        print(f"{name}:")  # noqa: T201
        for entry in found:
            print(f"  {entry.name}: {entry.summary}")  # noqa: T201
            for option in entry.options:
                default = "required" if option.default is None else f"default {option.default}"
                print(f"    {option.name}: {option.type}, {default}. {option.help}")  # noqa: T201


def _pairs(option: str, pairs: Sequence[str], example: str) -> dict[str, str]:
    found = {}
    for pair in pairs:
        name, equals, column = pair.partition("=")
        if not equals or not name or not column:
            raise UsageError(
                f"{option} takes KEY=NAME, not '{pair}'\nwrite, say, {option} {example}"
            )
        found[name] = column
    return found


if __name__ == "__main__":
    sys.exit(main())
