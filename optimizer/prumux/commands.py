"""Entry points of the commands. Ctrl-C ends a command cleanly, even during imports."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module

from prumux.optimizer.base.errors import INTERRUPTED
from prumux.optimizer.base.processors import cpu_threads


def opt() -> int:
    """Run `prumux-opt` and return its exit code. Errors are printed, not raised."""
    return _run("prumux-opt", "prumux.optimizer.cli.opt")


def bench() -> int:
    """Run `prumux-bench` and return its exit code. Errors are printed, not raised."""
    return _run("prumux-bench", "prumux.export.benchmark.cli")


def _run(program: str, module: str) -> int:
    again = "repeat the command"
    _open_streams()
    os.environ.setdefault("RAYON_NUM_THREADS", str(cpu_threads()))  # tokenizers' threads

    def exit_now(*_: object) -> None:
        # No work has begun. Raising KeyboardInterrupt is unsafe here: a C library that is
        # being imported turns KeyboardInterrupt into another exception or a warning.
        os.write(2, f"{program}: interrupted; {again}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # otherwise the parent process ignores SIGINT
        signal.signal(signal.SIGINT, exit_now)
    from prumux.optimizer.cli.console import guarded

    def run_main(arguments: list[str]) -> int:
        main = import_module(module).main
        signal.signal(signal.SIGINT, before)
        code: int = main(arguments)
        return code

    return guarded(program, run_main, None, again)


def _open_streams() -> None:
    """Connect each of stdin, stdout and stderr that the caller closed to the null device.

    Otherwise the next opened file would get the number of the closed stream, and output for
    the stream would be written into the file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the smallest free number: `number`
        if getattr(sys, name) is None:
            stream = open(number, "r" if number == 0 else "w", encoding="utf-8")  # noqa: SIM115, PTH123
            setattr(sys, name, stream)
