"""Checks and expands paths that users give."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

from .errors import UsageError


def local_path(text: str | Path) -> Path:
    """Convert a user's text to a path. A leading `~` is expanded if no such path exists.

    Raises:
        UsageError: the name is not UTF-8.
        OSError, RuntimeError, ValueError: the name is no valid path, or the home folder is
            unknown.
    """
    _check_letters(str(text))
    path = Path(text)
    return path if path.exists() else path.expanduser()


def check_name(name: str | Path | None) -> None:
    """Check that a file or folder can have this name. The path need not exist.

    Raises:
        UsageError: the name is too long, contains a zero byte, or is not UTF-8.
    """
    if name is None:
        return
    _check_letters(str(name))
    try:
        os.lstat(str(name))
    except ValueError as error:
        raise UsageError(f"'{name!s:.80}' cannot be a path: {error}") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UsageError(f"'{name!s:.80}' cannot be a path: name too long") from error


def hub_cure(error: Exception, otherwise: str) -> str:
    """The advice to print after an error of the Hub's library.

    Returns:
        Advice to set HF_HOME if the error is about permissions or space, else `otherwise`.
    """
    kinds = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENOSPC)
    if isinstance(error, OSError) and error.errno in kinds:
        return "set HF_HOME to a folder that can be written and has room"
    return otherwise


def _check_letters(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(name).decode("utf-8", "backslashreplace")
        cure = "rename the file or folder"
        if sys.getfilesystemencoding() != "utf-8":
            cure = "set PYTHONUTF8=1, because this locale has no letters beyond ASCII"
        raise UsageError(f"'{shown:.200}' cannot be opened as UTF-8\n{cure}") from error
