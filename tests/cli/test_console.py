"""How the commands end: interrupted while they begin, and with a traceback if asked for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence

import pytest

from prumux.optimizer.base.errors import INTERRUPTED, UsageError
from prumux.optimizer.cli.console import guarded

# What the installed script does; it says when torch begins to be imported.
BEGIN = """\
import sys
from importlib.metadata import entry_points

class Torch:
    def find_spec(self, name, path, target=None):
        if name == "torch":
            print("now", flush=True)

sys.meta_path.insert(0, Torch())
(command,) = entry_points(group="console_scripts", name=sys.argv[1])
sys.argv[:2] = [command.name]
sys.exit(command.load()())
"""


def begun(program: str, *arguments: str) -> subprocess.Popen[str]:
    """A command that has got as far as importing torch."""
    process = subprocess.Popen(
        [sys.executable, "-c", BEGIN, program, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "now\n"
    return process


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """Commands in the background of a script ignore SIGINT, and so would what they start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("program", ["prumux-opt", "prumux-bench"])
@pytest.mark.parametrize("wait_s", [0, 0.3])
def test_interrupted_while_torch_is_imported(program: str, wait_s: float) -> None:
    with begun(program, "no-such-model") as process:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(wait_s)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert said == f"{program}: interrupted; repeat the command\n"
    assert process.returncode == INTERRUPTED


def test_an_interruption_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as for a script's `command &`
    try:
        with begun("prumux-opt", "--version") as process:
            process.send_signal(signal.SIGINT)
            told, said = process.communicate(timeout=60)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (process.returncode, said) == (0, "")
    assert told.startswith("prumux ")


def failing(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (UsageError("no"), 2, "prumux-x: no\n"),
        (KeyboardInterrupt(), INTERRUPTED, "prumux-x: interrupted; try again\n"),
        (MemoryError(), 1, "prumux-x: out of memory"),
        (OSError(28, "full", "a"), 2, "prumux-x: full: a\nmake room and try again\n"),
        (OSError(13, "denied"), 2, "prumux-x: denied: the output folder\n"),
        (IndexError("9\n8"), 1, "prumux-x: internal error: IndexError: 9\nrun again with -vv"),
    ],
)
def test_the_traceback_is_shown_if_asked_for(
    error: BaseException,
    code: int,
    told: str,
    verbose: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        given: Sequence[str] = ["-vv"] if verbose else []
        assert guarded("prumux-x", lambda _: failing(error), given, "try again") == code
    finally:
        signal.signal(signal.SIGTERM, before)
    said = capsys.readouterr().err
    assert told in said
    assert said.startswith("prumux-x: ") == (not verbose)
    assert ("Traceback" in said) == ("in failing\n" in said) == verbose
