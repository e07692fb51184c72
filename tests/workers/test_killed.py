"""SIGKILL at ten random moments, and `--resume` after each."""

from __future__ import annotations

import json
import os
import random
import sys
import threading
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.cli.opt import main
from tests.helpers import jobs
from tests.helpers.quick import IMPORTED, time_little

pytestmark = pytest.mark.slow
KILLS = 10
AT_WORK = "rows to certify"
BUILDING = "building "


@dataclass(frozen=True)
class Process:
    """What became of one run of the command."""

    killed: bool
    seconds: float
    """From when it began to work."""
    built: tuple[str, ...]
    """Candidates that it built, in order."""


def command(arguments: list[str], said: Connection) -> None:
    """`prumux-opt` in a process of its own, on one core."""
    if hasattr(os, "sched_setaffinity"):  # two threads would wait for each other
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sys.stdout = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")
    sys.stderr = os.fdopen(os.dup(said.fileno()), "w", encoding="utf-8", buffering=1)
    said.close()
    time_little()
    sys.exit(main(arguments))


def run(job: list[str], out: Path, kill_after_s: float | None) -> Process:
    """Start or resume a run; kill it so long after it began to work."""
    context = get_context("forkserver")
    context.set_forkserver_preload([*IMPORTED, "pytest", "tests.helpers.quick"])
    heard, said = context.Pipe(duplex=False)
    process = context.Process(
        target=command, args=([*job, "--out", str(out), "--resume"], said)
    )
    process.start()
    said.close()
    with os.fdopen(os.dup(heard.fileno())) as stderr:
        lines = []
        for line in stderr:
            lines.append(line)
            if AT_WORK in line:
                break
        started = time.monotonic()
        killer = threading.Timer(3600 if kill_after_s is None else kill_after_s, process.kill)
        killer.start()
        lines += stderr
    process.join()
    killer.cancel()
    heard.close()
    code = process.exitcode
    assert code in (0, -9), "".join(lines)
    built = tuple(x.removeprefix(BUILDING).strip() for x in lines if x.startswith(BUILDING))
    return Process(code != 0, time.monotonic() - started, built)


def finished_trials(out: Path) -> set[str]:
    """Candidates whose trial is on disk."""
    kept = (out / ".resume").glob("trial-*.json")
    return {json.loads(path.read_text())["pipeline"] for path in kept}


def result(out: Path) -> dict[str, Any]:
    """All that must not depend on what was killed. A clock may drop a tiny model's engine."""
    report = json.loads((out / "report.json").read_text())
    lines = (out / "trials.jsonl").read_text().splitlines()
    trials = [{k: x for k, x in json.loads(y).items() if k != "seconds"} for y in lines]
    dropped = report["dropped"]
    weights = None if dropped else (out / "model.safetensors").read_bytes()
    return {
        "pipeline": (dropped or report)["pipeline"],
        "trials": trials,
        "proofs": report["proofs"],
        "weights": weights,
    }


def test_ten_kills_cost_only_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])  # where a process finds `tests`
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    job = [str(model), "--data", str(data), "--budget", "20%"]
    whole = run(job, tmp_path / "undisturbed", None)
    expected = result(tmp_path / "undisturbed")
    moments, kills, runs, log = random.Random(0), 0, 0, []

    def check(out: Path) -> None:
        found = result(out)
        if not (found["weights"] and expected["weights"]):
            found["weights"] = expected["weights"]
        assert found == expected

    while kills < KILLS:
        out = tmp_path / f"out{runs}"
        before = finished_trials(out)
        # Half of them early, so that some are left while candidates are built.
        until = whole.seconds * (0.8 if kills % 2 else 0.15)
        found = run(job, out, moments.uniform(0, until))
        assert not before & set(found.built), "a finished trial was run again"
        kills += found.killed
        log.append(
            f"{'killed' if found.killed else 'done'} after {found.seconds:.2f} s, "
            f"{len(before)} trials were finished, {len(found.built)} begun"
        )
        if not found.killed:  # it was done before
            check(out)
            runs += 1
    out = tmp_path / f"out{runs}"
    before = finished_trials(out)
    last = run(job, out, None)
    assert not before & set(last.built)
    check(out)
    print("\n".join([*log, f"then done in {last.seconds:.2f} s"]))  # noqa: T201
