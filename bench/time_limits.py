"""Does more time ever ship a slower engine, and how far off are expected losses?

    python bench/time_limits.py MODEL --data DIR --budget 2% --out bench/results/NAME.json
    python bench/time_limits.py ... --minutes 5 10 20 40

The script runs `prumux-opt --effort quick` once and `--effort standard` with each time limit.
Then it scores every candidate of every run on the test rows, and compares the loss that the
search expected with the loss on test rows. At last it times all shipped engines in one
interleaved run with the given model in fp32. Finished runs are kept beside the output: run the
same command again to go on.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.run.run import run
from prumux.optimizer.run.workspace import RESUME, Workspace
from prumux.optimizer.timing.serving_point import compare

TRIAL = "model", "answers"
"""Prefixes of the finished steps that are kept, so that candidates can be scored again."""


@dataclass(frozen=True)
class TimedRun:
    """One run of `prumux-opt`."""

    request: Request
    kept: Path
    """Folder of the run's candidates."""

    @property
    def name(self) -> str:
        """The effort, and the minutes of the time limit."""
        return self.kept.name

    def report(self) -> dict[str, Any]:
        """Run it, unless it has finished, and read its report."""
        path = self.request.folder / "report.json"
        if not path.exists() or not self.kept.exists():
            self._run()
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def _run(self) -> None:
        publish = Workspace.publish

        def keep_candidates(workspace: Workspace) -> None:
            shutil.rmtree(self.kept, ignore_errors=True)
            self.kept.mkdir(parents=True)
            for file in (workspace.out / RESUME).iterdir():
                if file.is_file() and file.name.startswith(TRIAL):
                    shutil.copy2(file, self.kept / file.name)
            publish(workspace)

        patched: Any = Workspace
        patched.publish = keep_candidates
        try:
            run(self.request, Progress(1))
        finally:
            patched.publish = publish


def runs(options: argparse.Namespace, folder: Path) -> list[TimedRun]:
    """The run of `quick`, and a run of `standard` for each time limit."""
    common = {
        "model": options.model,
        "data": options.data,
        "budget": Budget.parse(options.budget),
        "resume": True,
    }

    def one(name: str, **more: Any) -> TimedRun:
        request = Request(**common, **more, out=folder / name / "result")
        return TimedRun(request, folder / name / name)

    standard = (
        one(f"standard-{x:g}", effort="standard", time_limit_s=60 * x) for x in options.minutes
    )
    return [one("quick"), *standard]


def candidates(one: TimedRun, report: dict[str, Any]) -> list[dict[str, Any]]:
    """The losses of every candidate: expected, and on select, certify and test rows."""
    evaluator = open_evaluator(one.request, parse_target(one.request.target), Progress(1))
    ctx = replace(evaluator.ctx, store=Store(one.kept))
    target = parse_target(report["target"])
    evaluator = replace(evaluator, ctx=ctx, targets=(target,))
    proved = {x["pipeline"]: x["loss"] for x in report["proofs"]}
    found = []
    for trial in report["trials"]:
        if trial["loss"] is None:
            continue
        pipeline = Pipeline.parse(trial["pipeline"])
        on_test = evaluator.compare(pipeline, "test", 1.0, target=target)
        found.append(
            {
                "pipeline": trial["pipeline"],
                "macs": trial["macs"],
                "select_loss": trial["loss"],
                "expected_loss": trial["expected_loss"],
                "certify_loss": proved.get(trial["pipeline"]),
                "test_loss": on_test.loss,
            }
        )
    return found


def speeds(all_runs: Sequence[TimedRun]) -> list[dict[str, Any]]:
    """Time the engines of all runs in turn with the given model in fp32."""
    request = all_runs[0].request
    evaluator = open_evaluator(request, parse_target(request.target), Progress(1))
    ctx, baseline = evaluator.ctx, evaluator.target.baseline().layouts()[0]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        baseline.emit(evaluator.model, ctx, folder)
        engines = [baseline.engine(folder, ctx.threads)]
        for one in all_runs:
            target = parse_target(one.report()["target"])
            engines.append(target.engine(one.request.folder, ctx.threads))
        found = compare([(x, ctx.workload) for x in engines], ctx.progress, ctx.cores)
    return [asdict(x) for x in found[1:]]


def table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Format the runs, and the candidates of each."""
    lines = ["run            throughput           lost: certify, at most, test   pipeline"]
    for x in found:
        speed, proof, test = x["speed"], x["scores"]["certify"], x["scores"].get("test")
        lines.append(
            f"{x['run']:14} {speed['throughput_ratio']:5.2f}x "
            f"[{speed['throughput_ratio_low']:.2f}, {speed['throughput_ratio_high']:.2f}]  "
            f"{100 * proof['loss']:6.2f} {100 * proof['loss_upper']:6.2f} "
            f"{100 * test['loss'] if test else float('nan'):6.2f}   {x['pipeline'][:60]}"
        )
    lines.append("run            lost: select, expected, test   candidate")
    for x in found:
        for y in x["candidates"]:
            lost = (
                f"{100 * y[k]:6.2f}" for k in ("select_loss", "expected_loss", "test_loss")
            )
            lines.append(f"{x['run']:14} {' '.join(lost)}   ...{y['pipeline'][-60:]}")
    return lines


def main(argv: Sequence[str] | None = None) -> None:
    """Do all missing runs, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--budget", default="2%")
    parser.add_argument("--minutes", type=float, nargs="+", default=[5, 10, 20, 40])
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    all_runs = runs(options, options.out.with_suffix(".parts"))
    reports = [x.report() for x in all_runs]
    timed = speeds(all_runs)
    found = [
        {
            "run": one.name,
            "pipeline": report["pipeline"],
            "met": report["met"],
            "seconds": report["seconds"],
            "scores": report["scores"],
            "speed": speed,
            "candidates": candidates(one, report),
        }
        for one, report, speed in zip(all_runs, reports, timed, strict=True)
    ]
    values = {"schema_version": 1, "budget": options.budget, "runs": found, **provenance()}
    options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(found)), file=sys.stderr)  # noqa: T201 - the table of a script


if __name__ == "__main__":
    main()
