"""How the commands end: interrupted while they begin, and with a traceback if asked for."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from prumux.optimizer.base.errors import INTERRUPTED, UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.cli.console import Parser, guarded, shown

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
        (OSError(122, "quota", "a"), 2, "prumux-x: quota: a\nmake room and try again\n"),
        (OSError(24, "too many", "a"), 2, "prumux-x: too many: a\nallow more open files"),
        (OSError(36, "too long", "a" * 999), 2, f"prumux-x: too long: {'a' * 200}\n"),
        (FileNotFoundError(2, "no usable temporary directory in ['/a']"), 2, "set TMPDIR to"),
        (RuntimeError("x: can't allocate memory: 9"), 1, "prumux-x: out of memory"),
        (RuntimeError("CUDA out of memory."), 1, "prumux-x: out of memory"),
        (RuntimeError("another"), 1, "prumux-x: internal error: RuntimeError: another\n"),
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


@pytest.fixture
def reader_gone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both streams lead to a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        yield


@pytest.mark.usefixtures("reader_gone")
def test_a_reader_that_has_gone_changes_no_exit_code() -> None:
    def work(_: list[str]) -> int:
        with shown():
            sys.stdout.write("a table" * 10_000)
        Progress(1).say("a line")
        sys.stdout.write("the rest")
        return 3

    assert guarded("prumux-x", work, [], "try again") == 3
    assert guarded("prumux-x", lambda _: failing(UsageError("no")), [], "try again") == 2


@pytest.mark.usefixtures("reader_gone")
def test_progress_without_a_reader_ends_no_run() -> None:
    progress = Progress(2)
    with progress.task("training", 2) as step:
        step()
    progress.say("x" * 100_000)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_stdout_on_a_full_disk(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(_: list[str]) -> int:
        with shown():
            sys.stdout.write("a table")
        return 0

    with open("/dev/full", "w", encoding="utf-8") as stream:  # noqa: PTH123
        monkeypatch.setattr(sys, "stdout", stream)
        assert guarded("prumux-x", work, [], "try again") == 2
    said = capsys.readouterr().err
    assert said == "prumux-x: stdout cannot be written: No space left on device\n"


def test_letters_that_a_stream_lacks_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(sys, "stderr", stream)
    assert guarded("prumux-x", lambda _: failing(UsageError("größe \udcff")), [], "again") == 2
    stream.flush()
    assert written.getvalue() == b"prumux-x: gr\\xf6\\xdfe \\udcff\n"


@pytest.mark.parametrize("arguments", [["-model"], ["--out", "-o"], ["--out"]])
def test_a_name_that_begins_with_a_dash(arguments: list[str]) -> None:
    parser = Parser("prumux-x", "", "")
    parser.add_argument("--out")
    with pytest.raises(UsageError, match=r"write \./ before the name"):
        parser.parse_args(arguments)
