"""Kill runs at random moments and resume them: is the result the same as without kills?

Training is counted in epochs, because training by the clock never repeats exactly. For the
same reason a simulated clock times engines: its milliseconds depend on the engine's sizes
only. All other parts work as in a run of `prumux-opt`. Each run has a process of its own.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from tests.helpers import jobs

from .sandbox import forked
from .steps import stored

EPOCHS = 0.2
LIMIT_S = 1800.0
EFFORTS: dict[str, tuple[str, ...]] = {
    "quick": (),
    "standard": ("--effort", "standard", "--time-limit", "1000h"),
    "thorough": ("--effort", "thorough", "--time-limit", "1000h"),
    "quick, two workers": ("--workers", "2"),
}
TIMES = re.compile(r"seconds|date|command|latency_ms_.*")
"""Fields of a report that differ in every run."""
DONE = 0, 3
"""Exit codes of a finished run: 0 = a candidate meets the budget, 3 = no candidate does."""
MOMENTS = 0.8
"""A kill happens after at most this share of the duration of the run without kills."""
MOST_KILLS = 3
"""Largest number of kills of one run."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL."""

    after_s: float
    of: str
    """The killed process: `run`, or `worker` for a process that Ray started."""
    trials: int
    """Number of finished trials on disk."""


@dataclass(frozen=True)
class KilledRun:
    """One run, from its first start to its result."""

    effort: str
    number: int
    kills: tuple[Kill, ...]
    codes: tuple[int, ...]
    """Exit code of each process, in order. The last process finished."""
    differs: tuple[str, ...]
    """Parts of the result that differ from the run without kills."""


def steady_ms(run: Callable[[], object]) -> float:
    """Run the engine; return simulated milliseconds, which depend on its sizes only."""
    run()
    engine = _engine_of(run)
    sizes = str(getattr(engine, "sizes", ""))
    numbers = [
        int(x)
        for part in re.findall(r"(?:heads|ffn)=([\d,]+)", sizes)
        for x in part.split(",")
    ]
    slots = int(getattr(engine, "slots", 1))
    quicker = 2 if engine is not None and engine.describe().get("precision") == "int8" else 1
    return (5 + sum(numbers) / 10) / slots / quicker


def _engine_of(run: Any) -> Any:
    """Find the engine that a timed callable uses."""
    values = [*getattr(run, "args", ()), *(getattr(run, "__defaults__", None) or ())]
    values += [x.cell_contents for x in getattr(run, "__closure__", None) or ()]
    return next((x for x in values if hasattr(x, "describe")), None)


def command(model: Path, data: Path, effort: str, out: Path) -> list[str]:
    """Arguments of the command of a run."""
    given = [str(model), "--data", str(data), "--budget", "20%", "--out", str(out), "--resume"]
    return [*given, *EFFORTS[effort]]


def run_once(
    job: Sequence[str], said: Path, kill: Callable[[int], None] | None = None
) -> tuple[int, float]:
    """Start or resume a run in a child process, and wait for its end.

    Returns:
        The exit code (negative for a signal), and the seconds.
    """

    def work() -> int:
        from prumux.optimizer.cli.opt import main
        from prumux.optimizer.timing import interleave
        from prumux.passes.training.training_pass import TrainingPass

        interleave.SETTLE_CHECKS, interleave.LEAST_MS = 0, 0.0
        interleave.wall_ms = steady_ms
        patched: Any = TrainingPass
        patched.with_minutes = lambda self, _: replace(self, epochs=EPOCHS, minutes=None)
        return main(list(job))

    code, seconds, _ = forked(work, LIMIT_S, said, kill)
    return code, seconds


def result(out: Path) -> dict[str, Any]:
    """Read all parts of a result that must not depend on kills."""
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    trials = [
        json.loads(x) for x in (out / "trials.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    digests = {
        str(x.relative_to(out)): hashlib.sha256(x.read_bytes()).hexdigest()
        for x in sorted(out.rglob("*"))
        if x.suffix in (".safetensors", ".onnx", ".plan")
    }
    files = sorted(str(x.relative_to(out)) for x in out.rglob("*"))
    return {
        **without_times(report),
        "trials.jsonl": without_times(trials),
        "digests": digests,
        "all files": files,
    }


def without_times(value: Any) -> Any:
    """Remove the fields of `TIMES` from a JSON value."""
    if isinstance(value, dict):
        return {k: without_times(x) for k, x in value.items() if not TIMES.fullmatch(k)}
    return [without_times(x) for x in value] if isinstance(value, list) else value


def differences(found: Any, expected: Any, at: str = "") -> list[str]:
    """The first differences of two JSON values, at most eight, each with its path."""
    if isinstance(found, dict) and isinstance(expected, dict):
        keys = sorted({*found, *expected})
        parts = [differences(found.get(k), expected.get(k), f"{at}.{k}") for k in keys]
        return [x for part in parts for x in part][:8]
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [x for i, (a, b) in pairs for x in differences(a, b, f"{at}[{i}]")][:8]
    return [] if found == expected else [f"{at}: {found!s:.60}, not {expected!s:.60}"]


def killed_run(folder: Path, job: Job, number: int, seed: int) -> KilledRun:
    """Start a run, kill it up to `MOST_KILLS` times, let it finish, and compare results."""
    random = Random(f"{seed} {job.effort} {number}")
    out, said = folder / f"out{number}", folder / f"said{number}.txt"
    shutil.rmtree(out, ignore_errors=True)
    kills: list[Kill] = []
    codes: list[int] = []
    wrong: list[str] = []
    for _ in range(random.randint(1, MOST_KILLS)):
        killer = Killer(random.uniform(0, MOMENTS * job.seconds), random.random() < 0.5, out)
        code, _ = run_once(command(job.model, job.data, job.effort, out), said, killer.start)
        killer.done.set()
        codes.append(code)
        wrong += _unexpected(code, said, (*DONE, -signal.SIGKILL))
        if killer.kill is not None:
            kills.append(killer.kill)
        if code in DONE:
            break
    if codes[-1] not in DONE:
        codes.append(run_once(command(job.model, job.data, job.effort, out), said)[0])
        wrong += _unexpected(codes[-1], said, DONE)
    if codes[-1] in DONE:
        wrong += differences(result(out), job.expected)
    shutil.rmtree(out, ignore_errors=True)
    return KilledRun(job.effort, number, tuple(kills), tuple(codes), tuple(wrong))


def _unexpected(code: int, said: Path, expected: Sequence[int]) -> list[str]:
    text = said.read_text(errors="replace", encoding="utf-8")[-400:]
    return [] if code in expected else [f"a process ended with {code}: {text}"]


@dataclass(frozen=True)
class Job:
    """An effort, a model and data to run, and the result of the same run without kills."""

    effort: str
    model: Path
    data: Path
    expected: dict[str, Any]
    seconds: float
    """Duration of the run without kills."""


@dataclass(eq=False)
class Killer:
    """Kills a process, or a worker that Ray started for it, after some seconds."""

    after_s: float
    worker: bool
    """True = kill a worker, if the process has any."""
    out: Path
    kill: Kill | None = None
    done: threading.Event = field(default_factory=threading.Event)
    """Set when the process has ended, so that no later process with its id is killed."""

    def start(self, pid: int) -> None:
        """Start waiting in a thread."""
        threading.Thread(target=self._wait, args=(pid,), daemon=True).start()

    def _wait(self, pid: int) -> None:
        if self.done.wait(self.after_s):
            return
        workers = [x for x in descendants(pid) if is_worker(_name(x))]
        trials = len(list((self.out / ".resume").glob("trial-*.json")))
        with suppress(ProcessLookupError):
            if self.worker and workers:
                os.kill(workers[0], signal.SIGKILL)
                self.kill = Kill(self.after_s, "worker", trials)
                return
            os.kill(pid, signal.SIGKILL)
            self.kill = Kill(self.after_s, "run", trials)


def descendants(pid: int) -> list[int]:
    """Ids of all children of a process, and of their children."""
    found: list[int] = []
    with suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text(encoding="utf-8").split():
                found += [int(child), *descendants(int(child))]
    return found


def is_worker(name: bytes) -> bool:
    """True if a process is a worker of a run. Ray's agents are no workers."""
    return name.startswith(b"ray::") and b"Agent" not in name


def _name(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def run(folder: Path, kills: int, seed: int, say: Callable[[str], None]) -> list[KilledRun]:
    """Kill runs of every effort in turn, until `kills` are done. Each run is stored."""
    model, data = folder / "model", folder / "data"
    folder.mkdir(parents=True, exist_ok=True)
    # All runs use the same cost table, which is measured once.
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")

    def make() -> int:
        jobs.data_folder(data, jobs.model_folder(model))
        return 0

    if not (data / "test.jsonl").exists() and forked(make, LIMIT_S, folder / "making.txt")[0]:
        raise RuntimeError((folder / "making.txt").read_text(encoding="utf-8"))
    efforts = [x for x in EFFORTS if "workers" not in x or importlib.util.find_spec("ray")]
    known = [_job(folder, x, model, data) for x in efforts]
    found: list[KilledRun] = []
    number = 0
    while sum(len(x.kills) for x in found) < kills:
        for i, job in enumerate(known):
            step = folder / f"run-{seed}-{i}-{number}.json"
            made = partial(_facts, folder, job, number, seed)
            one = _read(stored(step, made))
            say(
                f"{one.effort}, run {number}: {len(one.kills)} kills, "
                f"{one.differs or 'the same result'}"
            )
            found.append(one)
        number += 1
    return found


def _facts(folder: Path, job: Job, number: int, seed: int) -> dict[str, Any]:
    return asdict(killed_run(folder, job, number, seed))


def _read(told: Mapping[str, Any]) -> KilledRun:
    """Make the killed run from its stored facts."""
    done = tuple(Kill(**x) for x in told["kills"])
    codes, differs = tuple(told["codes"]), tuple(told["differs"])
    return KilledRun(told["effort"], told["number"], done, codes, differs)


def _job(folder: Path, effort: str, model: Path, data: Path) -> Job:
    """The job of an effort, with the result of a run without kills."""

    def make() -> dict[str, Any]:
        out, said = folder / "quiet", folder / "quiet.txt"
        results = []
        for _ in range(2):
            shutil.rmtree(out, ignore_errors=True)
            code, seconds = run_once(command(model, data, effort, out), said)
            if code not in DONE:
                raise RuntimeError(
                    f"{effort}: a run ended with {code}:\n{said.read_text(encoding='utf-8')}"
                )
            results.append(result(out))
        if wrong := differences(results[0], results[1]):
            raise RuntimeError(f"{effort}: two quiet runs differ: {wrong}")
        return {"expected": results[0], "seconds": seconds}

    told = stored(folder / f"quiet-{list(EFFORTS).index(effort)}.json", make)
    return Job(effort, model, data, **told)


def summary(found: Sequence[KilledRun], seed: int) -> dict[str, Any]:
    """Count kills and differences by effort, and list all runs."""
    efforts: dict[str, dict[str, Any]] = {}
    for x in found:
        counts = efforts.setdefault(
            x.effort, {"runs": 0, "kills": 0, "of_workers": 0, "other_result": 0}
        )
        counts["runs"] += 1
        counts["kills"] += len(x.kills)
        counts["of_workers"] += sum(k.of == "worker" for k in x.kills)
        counts["other_result"] += bool(x.differs)
    return {
        "seed": seed,
        "kills": sum(len(x.kills) for x in found),
        "other_result": sum(bool(x.differs) for x in found),
        "epochs_of_each_training": EPOCHS,
        "efforts": efforts,
        "runs": [asdict(x) for x in found],
    }


def lines(found: Mapping[str, Any]) -> list[str]:
    """Format the summary as a table."""
    made = [f"{'effort':24}{'runs':>6}{'kills':>7}{'of workers':>12}{'other result':>14}"]
    for name, x in found["efforts"].items():
        made.append(
            f"{name:24}{x['runs']:6}{x['kills']:7}{x['of_workers']:12}{x['other_result']:14}"
        )
    return made
