"""A pipe between the main process and one that trains along."""

from __future__ import annotations

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, Popen, TimeoutExpired
from typing import Any

from prumux.optimizer.base.errors import LostError

PATIENCE_S = 300.0
"""So long a process may take to start, or for its share of a step."""
GRACE_S = 5.0
"""So long a process may take to end, or to say why it does."""


@dataclass(frozen=True, eq=False)
class Link:
    """One end of it. It tells at once when the process at the other end is gone."""

    pipe: Connection[Any, Any]
    name: str = "the main process"
    process: Popen[bytes] | None = None
    """The other one, where this is the main process."""

    def send(self, value: object) -> None:
        """Raises LostError where nobody reads."""
        try:
            self.pipe.send(value)
        except OSError as error:
            if self.pipe.poll(GRACE_S):
                self.receive()  # why
            raise self.lost("is gone") from error

    def receive(self) -> Any:
        """What is sent next; raises LostError where that is why the other ends, or nothing."""
        try:
            if self.process and not self.pipe.poll(PATIENCE_S):
                raise self.lost(f"has not answered for {PATIENCE_S:g} s")
            found = self.pipe.recv()
        except (EOFError, OSError) as error:
            raise self.lost(f"ended{self._code()}") from error
        if isinstance(found, str):
            raise self.lost(f"ended: {found}")
        return found

    def lost(self, why: str) -> LostError:
        """The error for it."""
        return LostError(
            f"training on several devices stopped: the process for {self.name} {why:.200}\n"
            "repeat the command with --resume to go on; --device cuda:0 trains on one GPU"
        )

    def kill(self) -> None:
        """End the process."""
        if self.process:
            self.process.kill()

    def close(self) -> None:
        """Return when the process has ended, killed if it must be."""
        self.pipe.close()
        self._code()
        self.kill()
        self._code()

    def _code(self) -> str:
        with suppress(TimeoutExpired):
            return f" with code {self.process.wait(GRACE_S)}" if self.process else ""
        return ""


def started(code: str, name: str, level: int) -> Link:
    """A new interpreter, which can import what this one can.

    Not a fork, which could not use CUDA. Nor multiprocessing's spawn, which runs the user's
    script again: all of it, where it has no `if __name__ == "__main__"`.

    Args:
        code: a function call, {} for the file descriptor of the pipe's other end.
        name: what the process is for, in messages.
        level: of the progress; what it writes is shown from 2 on only.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        paths = os.pathsep.join(str(Path(x).absolute()) for x in sys.path)
        process = Popen(
            [sys.executable, "-P", "-c", code.format(theirs.fileno())],
            env=os.environ | {"PYTHONPATH": paths},
            pass_fds=[theirs.fileno()],
            stdin=DEVNULL,
            stdout=DEVNULL,
            stderr=None if level >= 2 else DEVNULL,
            start_new_session=True,  # Ctrl-C is for the main process, which ends this one
        )
    return Link(Connection(ours.detach()), name, process)
