"""The output folder: stores finished steps and publishes the result."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.store import Store, write_atomic

RESUME = ".resume"
RUN = "run.json"
"""File in `RESUME` with facts that must be the same in a resumed run."""
REPORT = "report.json"
SEARCHED = "searched"
"""Empty file in `RESUME`: the search is finished, and only the engine is missing."""
MACHINE = ("threads", "device")
"""Facts of the search's machine. The machine that builds the engine may have others."""


@dataclass(frozen=True)
class Workspace:
    """An output folder in use, which this process has locked."""

    out: Path
    lock: int | None = None

    @property
    def store(self) -> Store:
        """Finished steps of this run."""
        return Store(self.out / RESUME)

    @property
    def staging(self) -> Path:
        """Folder in which the result is assembled before it is published."""
        return self.out / RESUME / "final"

    @property
    def engines(self) -> Path:
        """Folder of the exported engines that are timed."""
        return self.out / RESUME / "engines"

    @property
    def trials(self) -> Path:
        """File with one line for each trial. During the run it only grows."""
        return self.out / RESUME / "trials.jsonl"

    def record(self, trial: Mapping[str, Any]) -> None:
        """Append a trial to trials.jsonl, unless the file has it from an interrupted run."""
        text = self.trials.read_text(encoding="utf-8") if self.trials.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            write_atomic(self.trials, whole.encode())  # a killed run left half a line
        known = (json.loads(x) for x in whole.splitlines())
        if any(all(x.get(k) == trial.get(k) for k in ("pipeline", "target")) for x in known):
            return
        with self.trials.open("a", encoding="utf-8") as file:
            file.write(json.dumps(trial) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def mark_searched(self) -> None:
        """Mark the search as finished. Another machine may then build the engine."""
        write_atomic(self.out / RESUME / SEARCHED, b"")

    def release(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            os.close(self.lock)

    def publish(self) -> None:
        """Move the staged files to their places and delete the finished steps.

        Files of an earlier result are deleted; no other file is touched. A kill at any moment
        leaves a run that can be resumed. A folder without report.json counts as unfinished,
        so the old report.json is moved away first and the new one is written last.
        """
        if self.trials.exists():
            shutil.copyfile(self.trials, self.staging / self.trials.name)
        staged = sorted(_files(self.staging), key=lambda name: name == REPORT)
        # Kept until the end: after a kill, the resumed run must know the files to delete.
        before = self.out / RESUME / "earlier"
        if (self.out / REPORT).exists():
            before.mkdir(exist_ok=True)
            (self.out / REPORT).replace(before / REPORT)
        for name in (finished(before) or {}).get("files", []):
            if name not in staged:
                _forget(self.out, name)
        for name in staged:
            (self.out / name).parent.mkdir(parents=True, exist_ok=True)
            (self.staging / name).replace(self.out / name)
        # Without this file the run counts as finished, even if the deletion is interrupted.
        (self.out / RESUME / RUN).unlink(missing_ok=True)
        _clear(self.out)


def _clear(out: Path) -> None:
    """Delete the steps of an earlier run."""
    shutil.rmtree(out / RESUME, ignore_errors=True)


def _files(folder: Path) -> list[str]:
    """All files below a folder, relative to it."""
    return [str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()]


def _forget(out: Path, name: str) -> None:
    """Delete a file of an earlier result, and the folders that become empty."""
    path = out / name
    if ".." in Path(name).parts or not path.parent.resolve().is_relative_to(out.resolve()):
        return  # the report was tampered with
    path.unlink(missing_ok=True)
    for folder in path.relative_to(out).parents:
        if folder.name and (out / folder).is_dir() and not any((out / folder).iterdir()):
            (out / folder).rmdir()


def finished(out: Path) -> dict[str, Any] | None:
    """The report of a finished result; None if the report is missing or cannot be read."""
    try:
        report = json.loads((out / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and "schema_version" in report else None


def check_out(out: Path, inputs: Iterable[str | None], resume: bool, force: bool) -> None:
    """Check an output folder before any work is done. Nothing is written.

    Args:
        out: the folder.
        inputs: paths of the model and of all data.
        resume: True if the folder may contain an interrupted or finished run.
        force: True if a finished result may be replaced.

    Raises:
        UsageError: the folder cannot be used or written; the message says the remedy.
    """
    if out.is_symlink() and not out.exists():
        raise UsageError(
            f"'{out}' is a link to '{out.readlink()}', which does not exist\n"
            "make that folder, or give another one: --out DIR"
        )
    if out.exists() and not out.is_dir():
        raise UsageError(
            f"'{out}' is a file\ngive a folder that does not exist yet: --out DIR"
        )
    for name in inputs:
        if name and Path(name).exists() and Path(name).resolve().is_relative_to(out.resolve()):
            raise UsageError(f"--out '{out}' holds the input '{name}'; give another folder")
    if out.is_dir() and any(out.iterdir()):
        unfinished = (out / RESUME / RUN).exists()
        if not unfinished and finished(out) is None:
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


def open_workspace(
    out: Path, facts: Mapping[str, Any], resume: bool, force: bool = False
) -> Workspace | None:
    """Create the folder, or continue an interrupted run with the same facts.

    Returns:
        The locked workspace; None if a run with the same facts is finished.

    Raises:
        UsageError: another process uses the folder, or `resume` is set and the earlier run
            had other facts; the message names them.
    """
    facts = json.loads(json.dumps(facts))
    run = out / RESUME / RUN
    report = finished(out)
    if resume and not force and not run.exists() and report is not None:
        _same(report.get("facts", {}), facts, f"the finished run in '{out}'")
        _clear(out)  # a run that was killed after publishing left it
        return None
    try:
        out.mkdir(parents=True, exist_ok=True)
        workspace = Workspace(out, _lock(out))
    except OSError as error:
        raise UsageError(f"'{out}' cannot be written: {error.strerror}") from error
    try:
        if resume and run.exists():
            before, now = json.loads(run.read_text(encoding="utf-8")), facts
            if (out / RESUME / SEARCHED).exists():
                now = {**now, **{x: before.get(x) for x in MACHINE}}
            _same(before, now, f"the interrupted run in '{out}'")
        else:
            _clear(out)
            write_atomic(run, json.dumps(facts).encode())
    except BaseException:
        workspace.release()
        raise
    return workspace


def _same(before: Mapping[str, Any], facts: Mapping[str, Any], whose: str) -> None:
    then, now = (x.get("versions", {}).get("prumux") for x in (before, facts))
    if then != now:  # first, because it may cause other differences
        raise UsageError(
            f"{whose} was begun by prumux {then}, this is prumux {now}: "
            "the steps of one version are of no use to another\n"
            f"go on with prumux {then}, or start again with --force"
        )
    differs = sorted(k for k in facts.keys() | before.keys() if facts.get(k) != before.get(k))
    if differs:
        name = differs[0]
        raise UsageError(
            f"{whose} had another {', '.join(differs)}\n"
            f"{name}: then {_short(before.get(name))}, now {_short(facts.get(name))}\n"
            "repeat the first command with --resume, or start again with --force"
        )


def _lock(out: Path) -> int | None:
    """Lock the folder itself, without a lock file; None if the system has no locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(out, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if not isinstance(error, BlockingIOError):
            return None  # some network file systems have no locks
        raise UsageError(
            f"another prumux-opt is at work in '{out}'; wait for it, or give another --out DIR"
        ) from error
    return handle


def _existing_parent(path: Path) -> Path:
    for parent in path.absolute().parents:
        if parent.exists():
            return parent
    return Path("/")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:57] + "..."
