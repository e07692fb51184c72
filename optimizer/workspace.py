"""The output folder: where finished steps are kept, and how the result gets its place."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UsageError
from .store import Store, write_atomic

RESUME = ".resume"
OURS = ("report.json", "pipeline.txt", RESUME)


@dataclass(frozen=True)
class Workspace:
    """An output folder in use."""

    out: Path

    @property
    def store(self) -> Store:
        """Finished steps of this run."""
        return Store(self.out / RESUME)

    @property
    def staging(self) -> Path:
        """Where the result is put together before it is moved to its place."""
        return self.out / RESUME / "final"

    @property
    def engines(self) -> Path:
        """Where dense and optimised are exported to be timed."""
        return self.out / RESUME / "engines"

    def record(self, trial: Mapping[str, Any]) -> None:
        """Append one line to trials.jsonl, unless a run that was killed did so already."""
        path = self.out / "trials.jsonl"
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomic(path, whole.encode())  # a kill tore the last line
        if any(json.loads(x)["pipeline"] == trial["pipeline"] for x in whole.splitlines()):
            return
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def publish(self) -> None:
        """Move the staged files to their places, report.json last, and forget the steps.

        A kill on the way leaves the steps, so that the run can be resumed.
        """
        staged = sorted(self.staging.iterdir(), key=lambda p: p.name == "report.json")
        names = {p.name for p in staged} | {"trials.jsonl", RESUME}
        for path in self.out.iterdir():
            if path.name not in names and path.is_file():
                path.unlink()  # of the result that --force replaces
        for path in staged:
            path.replace(self.out / path.name)
        shutil.rmtree(self.out / RESUME)


def check_out(out: Path, source: str, resume: bool, force: bool) -> None:
    """Refuse an output folder before any work is done; writes nothing.

    Raises:
        UsageError: it exists and neither option allows that, or it cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"'{out}' is a file\ngive a folder that does not exist yet: --out DIR"
        )
    if Path(source).exists() and out.resolve() == Path(source).resolve():
        raise UsageError(f"--out '{out}' is the model itself; give another folder")
    if out.is_dir() and any(out.iterdir()):
        ours = any((out / name).exists() for name in OURS)
        unfinished = (out / RESUME).exists() and not (out / "report.json").exists()
        if not ours:
            raise UsageError(
                f"'{out}' exists and was not written by prumux; give another folder: --out DIR"
            )
        if not (force or resume):
            state = "an interrupted run" if unfinished else "a finished result"
            cure = "--resume to go on, or --force to start again"
            raise UsageError(
                f"'{out}' holds {state}\n"
                f"use {cure if unfinished else '--force to replace it, or another --out DIR'}"
            )
    parent = out if out.is_dir() else _existing_parent(out)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UsageError(f"'{out}' cannot be written: '{parent}' is not a writable folder")


def open_workspace(out: Path, facts: Mapping[str, Any], resume: bool) -> Workspace:
    """Make the folder, or go on in it if it was left by a run on the same facts.

    Raises:
        UsageError: `resume`, but the interrupted run was another one; names what differs.
    """
    run = out / RESUME / "run.json"
    if resume and run.exists():
        before = json.loads(run.read_text())
        differs = sorted(
            k for k in facts.keys() | before.keys() if facts.get(k) != before.get(k)
        )
        if differs:
            name = differs[0]
            raise UsageError(
                f"the interrupted run in '{out}' had another {', '.join(differs)}\n"
                f"{name}: then {_short(before.get(name))}, now {_short(facts.get(name))}\n"
                "repeat the first command with --resume, or start again with --force"
            )
        return Workspace(out)
    try:
        shutil.rmtree(out / RESUME, ignore_errors=True)
        (out / "trials.jsonl").unlink(missing_ok=True)
        write_atomic(run, json.dumps(facts).encode())
    except OSError as error:
        raise UsageError(f"'{out}' cannot be written: {error.strerror}") from error
    return Workspace(out)


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path("/")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
