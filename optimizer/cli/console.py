"""Helpers of all commands: option types, usage errors, and exit codes without tracebacks."""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Any, NoReturn, TextIO

from prumux.optimizer.base.devices import DEVICE
from prumux.optimizer.base.errors import INTERRUPTED, PrumuxError, UsageError

LARGEST_NUMBER = 999_999_999
"""The largest value of a numeric option."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises UsageError and refuses abbreviated options."""

    def __init__(
        self, prog: str, description: str, epilog: str, usage: str | None = None
    ) -> None:
        super().__init__(
            prog=prog,
            usage=usage,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        cure = ""
        if re.search(r"expected .*argument|unrecognized arguments: .*-", message):
            cure = "write ./ before the name of a file or folder that begins with a dash\n"
        raise UsageError(f"{message}\n{cure}see: {self.prog} --help")


def guarded(
    program: str, run: Callable[[list[str]], int], argv: Sequence[str] | None, again: str
) -> int:
    """Run a command and return its exit code. Errors become messages, not tracebacks.

    Args:
        program: name of the command, for messages.
        run: takes the arguments, does the work, returns the exit code.
        argv: the arguments; None = the arguments of this process.
        again: advice for messages about an interruption, such as "repeat the command".
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbose = "-vv" in arguments
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # the locale C has ASCII only
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            return run(arguments)
        finally:
            with shown():
                pass  # flush now: a failure when Python exits would print a traceback
    except BrokenPipeError:
        code = 1
    except (Exception, KeyboardInterrupt) as error:
        code, text = _exit_code_and_message(error, again)
        with suppress(OSError):
            if verbose:
                traceback.print_exception(error)
            print(f"{program}: {text}", file=sys.stderr)  # noqa: T201
    finally:
        _flush(sys.stderr)
    return code


@contextmanager
def shown() -> Iterator[None]:
    """Print to stdout in a block. A broken pipe ends the block, but not the command.

    The pipe breaks if its reader exits early, as in `| head -1`.

    Raises:
        UsageError: stdout cannot be written, for instance to a full disk.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        _discard(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            raise UsageError(f"stdout cannot be written: {error.strerror}") from error


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        _discard(stream)


def _discard(stream: TextIO) -> None:
    """Redirect a stream to the null device."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _exit_code_and_message(error: BaseException, again: str) -> tuple[int, str]:
    match error:
        case PrumuxError():
            return error.exit_code, str(error)
        case KeyboardInterrupt():
            return INTERRUPTED, f"interrupted; {again}"
        case MemoryError() | RuntimeError() if _is_memory(error):
            return 1, "out of memory; try a smaller --batch"
        case FileNotFoundError() if "temporary directory" in str(error):
            return 2, (
                f"{error.strerror}\nset TMPDIR to a folder that can be written and has room"
            )
        case OSError():
            where = f"{error.filename or 'the output folder'!s:.200}"
            text = f"{error.strerror or error}: {where}"
            cures = {
                errno.ENOSPC: f"\nmake room and {again}",
                errno.EDQUOT: f"\nmake room and {again}",
                errno.EMFILE: "\nallow more open files, say ulimit -n 1024",
            }
            return 2, text + cures.get(error.errno or 0, "")
    # Any other error is a bug in prumux.
    lines = str(error).splitlines() or [""]
    return 1, (
        f"internal error: {type(error).__name__}: {lines[0]:.200}\n"
        "run again with -vv for the traceback, and please report it"
    )


def _is_memory(error: BaseException) -> bool:
    """True if an error means a lack of memory, for which torch raises RuntimeError."""
    said = r"allocate memory|out of memory|bad.alloc"
    return isinstance(error, MemoryError) or re.search(said, str(error)) is not None


def device_name(text: str) -> str:
    """Option type: `auto`, `cpu`, `cuda` or `cuda:N`."""
    if not re.fullmatch(DEVICE, text):
        raise argparse.ArgumentTypeError(
            f"'{text}' is no device: write auto, cpu, cuda or cuda:0"
        )
    return text


def positive(text: str) -> int:
    """Option type: a whole number above 0."""
    if not re.fullmatch("[0-9]+", text) or not text.strip("0"):
        raise argparse.ArgumentTypeError(f"'{text:.40}' is not a whole number above 0")
    if len(text.lstrip("0")) > len(str(LARGEST_NUMBER)):
        raise argparse.ArgumentTypeError(f"{text:.40} is over the limit of {LARGEST_NUMBER}")
    return int(text)


def seconds(text: str) -> float:
    """Option type: a time such as 90s, 30m or 2h, in seconds."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h)?", text)
    if found is None or float(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a time: write 90s, 30m or 2h")
    return float(found[1]) * {"s": 1, "m": 60, "h": 3600}[found[2] or "s"]


def version() -> str:
    """The text of `--version`."""
    from importlib import metadata

    return f"prumux {metadata.version('prumux')}"


def print_json(value: Any) -> None:
    """Print one JSON document to stdout."""
    with shown():
        print(json.dumps(value, indent=2, allow_nan=False))  # noqa: T201
