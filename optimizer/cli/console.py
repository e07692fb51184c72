"""What all commands share: usage errors in our own way, exit codes, no traceback."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from prumux.optimizer.base.devices import DEVICE
from prumux.optimizer.base.errors import INTERRUPTED, PrumuxError, UsageError

MOST = 999_999_999
"""The largest number that an option takes."""


class Parser(argparse.ArgumentParser):
    """Reports usage errors as prumux does; takes no short forms."""

    def __init__(self, prog: str, description: str, epilog: str) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}\nsee: {self.prog} --help")


def guarded(
    program: str, run: Callable[[list[str]], int], argv: Sequence[str] | None, again: str
) -> int:
    """Run a command; returns the exit code and never lets a traceback out.

    Args:
        program: its name, for messages.
        run: does the work and returns the exit code.
        argv: its arguments, those of this process when left out.
        again: what a user does after an interruption.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "-vv" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as error:
        if verbose:
            traceback.print_exception(error)
        code, text = _told(error, again)
    print(f"{program}: {text}", file=sys.stderr)  # noqa: T201
    return code


def _told(error: BaseException, again: str) -> tuple[int, str]:
    """The exit code of what went wrong, and what is said of it."""
    match error:
        case PrumuxError():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, f"interrupted; {again}"
        case MemoryError():
            return 1, "out of memory; try a smaller --batch"
        case OSError():
            text = f"{error.strerror or error}: {error.filename or 'the output folder'}"
            full = f"\nmake room and {again}" if error.errno == errno.ENOSPC else ""
            return 2, text + full
    # A fault of prumux: one line, the traceback with -vv.
    lines = str(error).splitlines() or [""]
    return 1, (
        f"internal error: {type(error).__name__}: {lines[0]:.200}\n"
        "run again with -vv for the traceback, and please report it"
    )


def device_name(text: str) -> str:
    """`auto`, `cpu`, `cuda` or `cuda:N`, for argparse."""
    if not re.fullmatch(DEVICE, text):
        raise argparse.ArgumentTypeError(f"'{text}' is not auto, cpu, cuda or such as cuda:0")
    return text


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    if not re.fullmatch("[0-9]+", text) or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"'{text:.40}' is not a whole number above 0")
    if len(text.lstrip("0")) > len(str(MOST)):
        raise argparse.ArgumentTypeError(f"{text:.40} is over the limit of {MOST}")
    return int(text)


def seconds(text: str) -> float:
    """A time such as 90s, 30m or 2h, for argparse."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time: write 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def version() -> str:
    """For `--version`."""
    from importlib import metadata

    return f"prumux {metadata.version('prumux')}"


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201
