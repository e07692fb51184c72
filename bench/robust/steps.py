"""Store the finished steps of a study, so that an interrupted study can continue."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def stored(path: Path, make: Callable[[], Any]) -> Any:
    """Read the JSON value of a file. If there is no file, make the value and write it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(make()), encoding="utf-8")
        part.replace(path)
    return json.loads(path.read_text(encoding="utf-8"))
