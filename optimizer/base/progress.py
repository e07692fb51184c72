"""Progress on stderr: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

QUIET_SECONDS = 2.0
"""Tasks shorter than this print no line, unless `-v` is set."""

Tick = Callable[[], None]
"""A function that is called once per finished unit of work."""


@dataclass(frozen=True)
class Progress:
    """Prints to `stream` (stderr if None). The `level` is 0 quiet, 1 normal or 2 verbose."""

    level: int = 0
    stream: TextIO | None = None

    def say(self, line: str, level: int = 1) -> None:
        """Print one line if `self.level` is at least `level`."""
        stream = self.stream or sys.stderr
        if self.level >= level and stream is not None:
            with suppress(OSError, ValueError):  # a closed stream must not end the run
                print(line, file=stream, flush=True)

    @contextmanager
    def task(self, title: str, total: int) -> Iterator[Tick]:
        """Show `title` while the `with` block runs. The block calls the tick once per unit."""
        stream = self.stream or sys.stderr
        start = time.monotonic()
        if self.level >= 1 and stream is not None and stream.isatty():
            with _bar(stream) as bar:
                handle = bar.add_task(title, total=total)
                yield lambda: bar.advance(handle)
        else:
            yield lambda: None
        seconds = time.monotonic() - start
        if seconds >= QUIET_SECONDS or self.level >= 2:
            self.say(f"{title}: {seconds:.1f} s")


def _bar(stream: TextIO) -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(file=stream),
        transient=True,
    )
