"""Run `prumux-opt` in a monitored child process, and report faults."""

from __future__ import annotations

import os
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 60.0
ADDRESS_BYTES = 6 << 30
"""Address space that a run may use, in addition to what the process has at its start."""
PROCESS_EVENTS = (
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
    "pty.spawn",
)
NETWORK_EVENTS = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.bind",
    "socket.sendto",
    "urllib.Request",
)
CRASHED = 99
"""Exit code of a child that ended with an exception."""
ENDED_WELL = (0, 2, 3, 4, 5)
Snapshot = dict[str, tuple[int, int]]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one run of the command."""

    code: int
    """The exit code; negative = the signal that ended the process."""
    seconds: float
    peak_mb: float
    """Largest resident memory of the process in MiB, including memory of its parent."""
    message: str
    """The last lines of stderr."""
    faults: tuple[str, ...]


def forked(
    work: Callable[[], int],
    limit_s: float,
    said: Path,
    started_as: Callable[[int], None] | None = None,
) -> tuple[int, float, float]:
    """Run a function in a child, with its output in a file. `started_as` gets the child's id.

    Returns:
        The exit code (negative: a signal), the seconds, and the peak memory in MiB.
    """
    started = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork with threads
        pid = os.fork()
    if not pid:
        os.setsid()
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = (
            open(x, "w", errors="backslashreplace", closefd=False, encoding="utf-8")  # noqa: SIM115
            for x in (1, 2)
        )
        code = CRASHED
        try:
            code = work()
        except BaseException:  # the child must end here after any exception
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    if started_as is not None:
        started_as(pid)
    waiting = os.pidfd_open(pid)
    ready, _, _ = select.select([waiting], [], [], limit_s)
    os.close(waiting)
    if not ready:
        os.killpg(pid, signal.SIGKILL)
    _, status, used = os.wait4(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code, time.monotonic() - started, used.ru_maxrss / 1024


def snapshot(folder: Path) -> Snapshot:
    """Size and time of all files and folders below a folder."""
    found = {}
    for path in folder.rglob("*"):
        facts = path.lstat()
        time_ns = 0 if path.is_dir() and not path.is_symlink() else facts.st_mtime_ns
        found[str(path.relative_to(folder))] = (0 if not time_ns else facts.st_size, time_ns)
    return found


def run_command(
    folder: Path, arguments: Sequence[str], may_write: bool, limit_s: float = LIMIT_S
) -> Outcome:
    """Run `prumux-opt` in `folder/here`, with home and temporary folders below `folder`.

    Args:
        folder: contains the inputs.
        arguments: arguments of the command.
        may_write: True without `--dry-run`: the command may write below `here` and `home`,
            unless it refuses its input.
        limit_s: time in seconds after which the command is killed. This counts as a fault.
    """
    for name in ("here", "home", "tmp"):
        (folder / name).mkdir()
    before = snapshot(folder)
    seen = folder.parent / f"{folder.name}.seen"
    said = folder.parent / f"{folder.name}.said"

    def work() -> int:
        from prumux.optimizer.cli.opt import main

        _move_in(folder)
        watch(folder, seen)
        return main(list(arguments))

    code, seconds, peak_mb = forked(work, limit_s, said)
    text = said.read_text(encoding="utf-8", errors="replace")
    faults = [*_ended(code, text, seconds, limit_s), *_seen(seen)]
    faults += _written(before, snapshot(folder), may_write and code in (0, 3, 4))
    said.unlink()
    seen.unlink(missing_ok=True)
    lines = [x for x in text.splitlines() if x.startswith("prumux-opt:")] or text.splitlines()
    return Outcome(code, seconds, peak_mb, " / ".join(lines[-3:])[:300], tuple(faults))


def _move_in(folder: Path) -> None:
    os.chdir(folder / "here")
    os.environ["HOME"] = str(folder / "home")
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ.pop("XDG_CACHE_HOME", None)
    tempfile.tempdir = None
    resource.setrlimit(resource.RLIMIT_AS, (address_bytes() + ADDRESS_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def address_bytes() -> int:
    """Size of the address space of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    return pages * resource.getpagesize()


def watch(folder: Path, seen: Path) -> None:
    """Write forbidden events of this process to a file, and prevent them, until it ends."""
    log = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    inside, allowed = f"{folder}{os.sep}", ("/dev/", "/proc/self/")

    def note(text: str) -> None:
        os.write(log, f"{text}\n".encode("utf-8", "replace"))

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, mode, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            place = os.fsdecode(path) if isinstance(path, str | bytes) else ""
            place = os.path.normpath(Path(place).absolute()) if place else inside
            if (writes or (mode and mode[0] in "wax")) and not place.startswith(
                (inside, *allowed)
            ):
                note(f"opened for writing: {place}")
        elif event == "exec":
            name = str(getattr(arguments[0], "co_filename", ""))
            if name.startswith(inside):
                note(f"executed: {name}")
        elif event in PROCESS_EVENTS:
            note(f"started a process: {str(arguments)[:200]}")
            raise PermissionError(f"{event} is not allowed here")
        elif event in NETWORK_EVENTS:
            note(f"used the network: {event} {str(arguments[1:])[:200]}")
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def _ended(code: int, text: str, seconds: float, limit_s: float) -> list[str]:
    if seconds >= limit_s and code == -signal.SIGKILL:
        return [f"ran longer than {limit_s:g} s"]
    found = [] if code in ENDED_WELL else [f"ended with {code}"]
    marks = (
        "Traceback (most recent call last)",
        "internal error",
        "panicked at",
        "Segmentation",
    )
    return found + [f"said '{x}'" for x in marks if x in text]


def _seen(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(dict.fromkeys(lines))[:5]


def _written(before: Snapshot, after: Snapshot, may_write: bool) -> list[str]:
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if may_write:
        changed = [x for x in changed if not x.startswith(("here/", "home/.cache/prumux"))]
        changed = [x for x in changed if x != "home/.cache"]
    return [f"wrote or changed: {x}" for x in changed[:5]]
