"""Paths that users give."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from .errors import UsageError


def local_path(text: str | Path) -> Path:
    """The path of a file or folder that a user names; a leading `~` may be his home.

    Raises:
        UsageError: the name is not UTF-8.
        OSError, RuntimeError, ValueError: no path can have this name, or the home is unknown.
    """
    check_name(text)
    path = Path(text)
    return path if path.exists() else path.expanduser()


def check_name(name: object) -> None:
    """Check that every library can open a file or folder of this name.

    Raises:
        UsageError: it is not UTF-8, or the locale of this process is not.
    """
    try:
        str(name).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(str(name)).decode("utf-8", "backslashreplace")
        cure = "rename the file or folder"
        if sys.getfilesystemencoding() != "utf-8":
            cure = "set PYTHONUTF8=1, because this locale has no letters beyond ASCII"
        raise UsageError(f"'{shown:.200}' cannot be opened as UTF-8\n{cure}") from error
