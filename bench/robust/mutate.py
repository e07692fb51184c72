"""Make mutated inputs from a seed and a number, and run each in a monitored process."""

from __future__ import annotations

import gc
import importlib
import json
import shutil
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from . import inputs
from .checkpoint_damage import CHECKPOINT, CONFIG, Damage
from .data_damage import DATA
from .inputs import Base
from .sandbox import CRASHED, Outcome, forked, run_command
from .text_damage import SOUND, TEXTS

AREAS: dict[str, dict[str, Damage]] = {
    "checkpoint": CHECKPOINT,
    "config and tokenizer": CONFIG,
    "data": DATA,
}
OPTIONS = "options and pipeline texts"
WEIGHTS = {"checkpoint": 34, "config and tokenizer": 28, "data": 26, OPTIONS: 12}
FULL_EVERY = 48
"""Of so many inputs, one runs to its end. The other runs stop after `--dry-run`."""
SPARE_MB, SPARE_PER_BYTE = 64.0, 50.0
"""Allowed memory in addition to a sound input's: MiB, and bytes for each byte of input."""
QUICK = "onnx{precision=fp32}"


@dataclass(frozen=True)
class Case:
    """A mutated input and the outcome of its run."""

    number: int
    area: str
    kind: str
    base: str
    mutation: str
    command: tuple[str, ...]
    full: bool
    """True if the run is without `--dry-run`."""
    input_bytes: int
    outcome: Outcome


@dataclass(frozen=True)
class Bench:
    """The bases, and the memory of their runs."""

    folder: Path
    bases: tuple[Base, ...]
    peak_mb: dict[bool, float]
    """Peak memory in MiB, by `Case.full`."""


def prepare(folder: Path) -> Bench:
    """Make the bases, import all modules of a run, and measure sound inputs.

    Raises:
        RuntimeError: a sound input gives a fault, so mutations would show nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    said, names = folder / "making.txt", folder / "modules.json"

    def make() -> int:
        from prumux.optimizer.timing import interleave

        # Times do not matter here, so the run need not wait for a quiet machine.
        interleave.SETTLE_CHECKS, interleave.LEAST_MS = 0, 0.0
        inputs.make(folder / "bases")
        return 0

    if forked(make, 1800, said)[0]:
        raise RuntimeError(
            f"the sound inputs could not be made:\n{said.read_text(encoding='utf-8')}"
        )
    bases = inputs.make(folder / "bases")

    def learn() -> int:
        from prumux.optimizer.cli.opt import main

        codes = []
        for i, base in enumerate(bases):
            home = folder / "bases" / base.name
            more = ["--dry-run"] if i else ["--out", str(folder / "learnt"), "--force", "-q"]
            given = [str(home / base.model), "--data", str(home / "data" / "parquet")]
            codes.append(main([*given, "--passes", SOUND[0], "--target", QUICK, *more]))
        names.write_text(json.dumps(sorted(sys.modules)), encoding="utf-8")
        return max(codes)

    if forked(learn, 600, said)[0]:
        raise RuntimeError(f"a sound input does not run:\n{said.read_text(encoding='utf-8')}")
    # Import once here, not in each child. Some libraries also write a folder on import.
    for name in json.loads(names.read_text(encoding="utf-8")):
        with suppress(Exception):  # a generated module, or a private module of a library
            importlib.import_module(name)
    from prumux.optimizer.timing import interleave

    interleave.SETTLE_CHECKS, interleave.LEAST_MS = 0, 0.0
    gc.freeze()  # a garbage collection in a child would copy shared memory
    bench = Bench(folder, bases, {False: 0.0, True: 0.0})
    for i, base in enumerate(bases):
        for full in (False, True) if i == 0 else (False,):
            case = _run(bench, -1 - i, "sound", "none", base, "parquet", None, full=full)
            if case.outcome.code or case.outcome.faults:
                raise RuntimeError(f"a sound input gives a fault: {case.outcome}\n{case}")
            bench.peak_mb[full] = max(bench.peak_mb[full], case.outcome.peak_mb)
    return bench


def run_case(bench: Bench, seed: int, number: int) -> Case:
    """Make and run the mutated input of a number. The same seed gives the same input."""
    random = Random(f"{seed} {number}")
    area = random.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    base = random.choice((*bench.bases, *bench.bases[:1] * 3))
    kind = random.choice(sorted(TEXTS if area == OPTIONS else AREAS[area]))
    formats = sorted(x.name for x in (bench.folder / "bases" / base.name / "data").iterdir())
    ending = random.choice(formats)
    full = number % FULL_EVERY == 0 and area != OPTIONS
    return _run(bench, number, area, kind, base, ending, random, full=full)


def _run(  # noqa: PLR0917 - all that makes a case
    bench: Bench,
    number: int,
    area: str,
    kind: str,
    base: Base,
    ending: str,
    random: Random | None,
    *,
    full: bool,
) -> Case:
    folder = bench.folder / f"case{number}"
    shutil.rmtree(folder, ignore_errors=True)
    source = bench.folder / "bases" / base.name
    shutil.copytree(source / "model", folder / "model")
    shutil.copytree(source / "data" / ending, folder / "data")
    command = ["../" + base.model, "--data", "../data"]
    mutation = ""
    if random is not None and area == OPTIONS:
        changed = TEXTS[kind](random)
        mutation = ascii(changed)[:300]
        command += changed
    else:
        if random is not None:
            mutation = _damage(folder, AREAS[area][kind], random)
        whole = base.budget and (random is None or random.random() < 0.5) and not full
        command += ["--budget", "20%"] if whole else ["--passes", SOUND[0], "--target", QUICK]
    command += [] if full else ["--dry-run"]
    size = sum(x.lstat().st_size for x in folder.rglob("*") if not x.is_dir())
    outcome = run_command(folder, command, may_write=full)
    faults = [*outcome.faults, *_memory(bench, outcome, size, full=full)]
    shutil.rmtree(folder, ignore_errors=True)
    hidden = str(bench.folder)
    outcome = Outcome(
        outcome.code,
        round(outcome.seconds, 3),
        round(outcome.peak_mb, 1),
        outcome.message.replace(hidden, ""),
        tuple(x.replace(hidden, "") for x in faults),
    )
    return Case(number, area, kind, base.name, mutation, tuple(command), full, size, outcome)


def _damage(folder: Path, damage: Damage, random: Random) -> str:
    """Damage the inputs in a child process, so that this process does not change."""
    said, told = folder.parent / "damage.txt", folder.parent / "damage.said"
    part = folder / ("data" if damage in DATA.values() else "model")

    def work() -> int:
        told.write_text(damage(random, part), encoding="utf-8", errors="backslashreplace")
        return 0

    code, _, _ = forked(work, 60, said)
    if code == CRASHED:
        raise RuntimeError(
            f"the mutation of {folder.name} failed:\n{said.read_text(encoding='utf-8')}"
        )
    return told.read_text(encoding="utf-8")[:300]


def _memory(bench: Bench, outcome: Outcome, size: int, *, full: bool) -> Iterator[str]:
    limit = bench.peak_mb[full] + SPARE_MB + SPARE_PER_BYTE * size / 2**20
    if bench.peak_mb[full] and outcome.peak_mb > limit:
        yield f"took {outcome.peak_mb:.0f} MiB, at most {limit:.0f} for such an input"


def run_all(
    bench: Bench, seed: int, numbers: Iterable[int], parts: Path, say: Callable[[str], None]
) -> list[Case]:
    """Run the cases that are not in the file `parts`, and store each at once."""
    if parts.exists() and not parts.read_bytes().endswith(b"\n"):
        with parts.open("a", encoding="utf-8") as file:
            file.write("\n")  # end an incomplete last line
    known = {x.number: x for x in read(parts)}
    found = []
    for number in numbers:
        case = known.get(number)
        if case is None:
            case = run_case(bench, seed, number)
            with parts.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(case)) + "\n")
            if case.outcome.faults:
                say(f"case {number}: {case.outcome.faults[0]} ({case.kind}: {case.mutation})")
        found.append(case)
    return found


def read(parts: Path) -> list[Case]:
    """Read the stored cases. An incomplete last line is left out."""
    found = []
    for line in parts.read_text(encoding="utf-8").splitlines() if parts.exists() else ():
        with suppress(ValueError):
            facts = json.loads(line)
            told = facts["outcome"]
            outcome = Outcome(**{**told, "faults": tuple(told["faults"])})
            facts |= {"outcome": outcome, "command": tuple(facts["command"])}
            found.append(Case(**facts))
    return found


def summary(cases: Sequence[Case], bench: Bench, seed: int) -> dict[str, Any]:
    """Count cases by kind and exit code, and list all faults."""
    kinds: dict[str, Counter[str]] = {}
    for case in cases:
        counts = kinds.setdefault(f"{case.area}: {case.kind}", Counter())
        counts[str(case.outcome.code)] += 1
        counts["faults"] += bool(case.outcome.faults)
    seconds = [x.outcome.seconds for x in cases]
    above = [x.outcome.peak_mb - bench.peak_mb[x.full] for x in cases]
    return {
        "seed": seed,
        "cases": len(cases),
        "full_runs": sum(x.full for x in cases),
        "exit_codes": dict(sorted(Counter(str(x.outcome.code) for x in cases).items())),
        "faults": sum(bool(x.outcome.faults) for x in cases),
        "seconds": {"median": statistics.median(seconds), "most": max(seconds)},
        "peak_mb_above_a_sound_input": {"most": round(max(above), 1)},
        "kinds": {k: dict(sorted(x.items())) for k, x in sorted(kinds.items())},
        "faulty": [asdict(x) for x in cases if x.outcome.faults],
    }


def lines(found: dict[str, Any]) -> list[str]:
    """Format the summary as lines of a table."""
    codes = [*found["exit_codes"], "faults"]
    made = [f"{'mutated input':42}" + "".join(f"{x:>8}" for x in codes)]
    totals = {**found["exit_codes"], "faults": found["faults"]}
    for kind, counts in [*found["kinds"].items(), ("all", totals)]:
        made.append(f"{kind:42}" + "".join(f"{counts.get(x, 0):8}" for x in codes))
    return made
