"""The folder of finished results, and the remaining time."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.store import write_atomic

MOST_BYTES = 16 << 20
"""Largest size of a file in the folder, so that the whole folder can be copied."""
Facts = dict[str, Any]


def say(text: str) -> None:
    """Print a line of progress."""
    print(text, file=sys.stderr, flush=True)  # noqa: T201


@dataclass(frozen=True)
class Work:
    """A folder with one JSON file for each result."""

    folder: Path
    ends: float
    """End of the run, by `time.monotonic`."""
    facts: Facts = field(default_factory=dict)
    """Device, commit, date and versions. They are stored with each result."""
    retry: bool = False
    """True = make failed results again."""

    @property
    def left_s(self) -> float:
        """Seconds until the end of the run."""
        return self.ends - time.monotonic()

    def until(self, seconds: float) -> Work:
        """The same folder with an end that is at most `seconds` from now."""
        ends = min(self.ends, time.monotonic() + seconds)
        return Work(self.folder, ends, self.facts, self.retry)

    def read(self, name: str) -> Facts | None:
        """Read a stored result; None if it does not exist or cannot be read."""
        try:
            found = json.loads((self.folder / f"{name}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def done(self, name: str) -> bool:
        """True if the result of this name is finished."""
        found = self.read(name)
        if found is None or found.get("unfinished"):
            return False
        return not (self.retry and "failed" in found)

    def keep(self, name: str, found: Facts) -> None:
        """Store a result.

        Raises:
            UsageError: the result is too large.
        """
        data = json.dumps({**found, "facts": self.facts}, indent=1).encode()
        if len(data) > MOST_BYTES:
            raise UsageError(f"{name} has {len(data)} bytes, {MOST_BYTES} are allowed")
        write_atomic(self.folder / f"{name}.json", data)

    def attempt(self, name: str, make: Callable[[], Facts | None]) -> bool:
        """Make a result, and store it or its error. Returns False if no time is left.

        `make` returns None if it stored the result itself.
        """
        if self.done(name):
            return True
        if self.left_s <= 0:
            return False
        start = time.monotonic()
        try:
            found = make()
        except Exception as error:  # other results do not depend on this result
            first = str(error).strip().split("\n")[0][:300]
            found = {"failed": f"{type(error).__name__}: {first}"}
        if found is not None:
            self.keep(name, {**found, "seconds": round(time.monotonic() - start, 2)})
        stored = self.read(name) or {}
        say(f"{name}: {stored.get('failed', 'done')}, {time.monotonic() - start:.1f} s")
        return True

    def results(self, part: str) -> list[Facts]:
        """All stored results of a part, sorted by name."""
        files = sorted(self.folder.glob(f"{part}-*.json"))
        found = [(x.stem, self.read(x.stem)) for x in files]
        return [{"name": name, **x} for name, x in found if x is not None]
