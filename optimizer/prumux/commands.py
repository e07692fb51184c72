"""Where the commands begin: an interruption ends them well from the first import on."""

from __future__ import annotations

import os
import signal
from importlib import import_module

from prumux.optimizer.base.errors import INTERRUPTED


def opt() -> int:
    """Run `prumux-opt`; returns the exit code and never lets a traceback out."""
    return _begin("prumux-opt", "prumux.optimizer.cli.opt")


def bench() -> int:
    """Run `prumux-bench`; returns the exit code and never lets a traceback out."""
    return _begin("prumux-bench", "prumux.export.benchmark.cli")


def _begin(program: str, module: str) -> int:
    again = "repeat the command"

    def leave(*_: object) -> None:
        # Nothing is under way yet. An exception would not do: libraries written in C turn one
        # that is raised inside their imports into others, or into a warning.
        os.write(2, f"{program}: interrupted; {again}\n".encode())
        os._exit(INTERRUPTED)

    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:  # else a parent had it ignored: so it stays
        signal.signal(signal.SIGINT, leave)
    from prumux.optimizer.cli.console import guarded

    def run(arguments: list[str]) -> int:
        main = import_module(module).main
        signal.signal(signal.SIGINT, before)
        code: int = main(arguments)
        return code

    return guarded(program, run, None, again)
