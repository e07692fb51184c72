"""Runs under conditions that containers and batch systems have."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import jobs

ROOT = Path(__file__).parents[2]
FOLDERS = ("optimizer", "passes", "export", "bench")

# One process, because each takes seconds to import torch.
HARSH = """\
import json, os, resource, sys

os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
os.umask(0o077)

from prumux.optimizer.timing import interleave
interleave.SETTLE_CHECKS, interleave.LEAST_MS = 0, 0.0
import prumux
from prumux.commands import bench, opt

def called(command, *arguments):
    sys.argv[1:] = arguments
    return command()

*given, out = sys.argv[1:]
codes = [
    called(opt, *given, "--passes", "prune{sparsity=0.1},slice", "--out", out),
    called(bench, out, "--rounds", "1", "--batch", "1", "--length", "4"),
    called(opt, "model-\\udcff", "--budget", "2%"),
]
predictor = prumux.load(out)
found = {"codes": codes, "label": predictor.predict(["good film"])[0].label}
found["threads"] = predictor.engine.describe()["threads"]
print(json.dumps(found))
"""
LABELS = {"0": "müde [/b] :x:", "1": "好 [bold]"}


def run(code: str, *arguments: str, flags: tuple[str, ...] = (), **env: str) -> Any:
    """A new Python that runs this code; variables with an empty value are unset."""
    kept = {k: v for k, v in (os.environ | env).items() if v}
    return subprocess.run(
        [sys.executable, *flags, "-c", code, *arguments],
        env=kept,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=300,
        check=False,
    )


def files(folder: Path) -> list[str]:
    return [str(x.relative_to(folder)) for x in folder.rglob("*") if x.is_file()]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="affinity and limits of Linux")
def test_a_harsh_place(tmp_path: Path) -> None:
    """ASCII locale, one processor, few files, umask 077, -O, -W error, and a fresh HOME."""
    model = jobs.model_folder(tmp_path / "a model #1 %s", jobs.CONFIG | {"id2label": LABELS})
    data = jobs.data_folder(tmp_path / "data", model)
    home, out = tmp_path / "home", tmp_path / "out"
    home.mkdir()
    done = run(
        HARSH,
        *(str(model), "--data", str(data), str(out)),
        flags=("-O", "-W", "error"),
        HOME=str(home),
        LC_ALL="C",
        PYTHONUTF8="0",
        PYTHONCOERCECLOCALE="0",
        PYTHONIOENCODING="ascii",
        TERM="dumb",
        COLUMNS="20",
        NO_COLOR="1",
        XDG_CACHE_HOME="",
        OMP_NUM_THREADS="",
        ORT_DISABLE_TELEMETRY="",
    )
    said, told = done.stderr.decode("ascii"), done.stdout.decode("ascii")
    assert done.returncode == 0, said
    assert "Traceback" not in said
    found = json.loads(told.splitlines()[-1])
    assert found["codes"] == [0, 0, 2], said
    assert "set PYTHONUTF8=1" in said
    assert found["label"] in LABELS.values()
    for label in ("m\\xfcde [/b] :x:", "\\u597d [bold]"):
        assert f"recall of '{label}'" in told
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    threads = {
        found["threads"],
        str(report["serving"]["threads"]),
        report["engine"]["threads"],
        report["device"]["cpu_threads"],
    }
    assert threads == {"1"}
    assert files(home) == [], "no cache was asked for, and no id of this device"
    assert (out / "report.json").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("given", "kept"), [("", "1"), ("0", "0")])
def test_telemetry_is_what_the_user_set(given: str, kept: str) -> None:
    told = "import os, prumux; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert run(told, ORT_DISABLE_TELEMETRY=given).stdout.decode().strip() == kept


def test_closed_streams_are_not_written_into() -> None:
    """A file that is opened later would get the number of a closed stream."""
    code = """\
import os, sys
from prumux.commands import _open_streams
_open_streams()
number = os.open(sys.argv[1], os.O_RDONLY)
print("x", flush=True)
os._exit(number)
"""
    line = '"$@" <&- >&- 2>&-'
    told = ["bash", "-c", line, "-", sys.executable, "-c", code, __file__]
    assert subprocess.run(told, check=False, timeout=60).returncode == 3


def test_no_source_depends_on_locale_clock_or_assertions() -> None:
    """The locale's encoding, a clock that jumps, and asserts that `python -O` drops."""
    sources = [x for folder in FOLDERS for x in (ROOT / folder).rglob("*.py")]
    assert len(sources) > 100
    assert [f"{path}:{line}" for path in sources for line in depending(path)] == []


def depending(path: Path) -> list[int]:
    """The lines of a file that depend on one of them."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    calls = [x for x in nodes if isinstance(x, ast.Call)]
    found = [x.lineno for x in calls if depends_on_locale(x)]
    found += [x.lineno for x in calls if ast.unparse(x.func) == "time.time"]
    asserts = [x for x in nodes if isinstance(x, ast.Assert)]
    return found + [x.lineno for x in asserts if not tells_a_type(x)]


def tells_a_type(assertion: ast.Assert) -> bool:
    """Whether an assertion is for mypy only: `x is not None`, or `isinstance(x, A)`."""
    text = ast.unparse(assertion.test)
    return text.endswith(" is not None") or text.startswith("isinstance(")


def depends_on_locale(call: ast.Call) -> bool:
    """Whether a call is of `read_text`, `write_text` or a text mode of `open`, as is."""
    name = getattr(call.func, "attr", getattr(call.func, "id", ""))
    given = {x.arg for x in call.keywords}
    texts = [x.value for x in call.args if isinstance(x, ast.Constant)]
    positional = {"read_text": 1, "write_text": 2}
    if name in positional:
        return "encoding" not in given and len(call.args) < positional[name]
    modes = [x for x in texts if isinstance(x, str) and set(x) <= set("rwabx+t")]
    return name == "open" and bool(modes) and "b" not in modes[0] and "encoding" not in given


@pytest.mark.parametrize(
    ("line", "depends"),
    [
        ("p.read_text()", True),
        ("p.read_text('utf-8')", False),
        ("p.write_text(x)", True),
        ("p.write_text(x, encoding='utf-8')", False),
        ("p.open('a')", True),
        ("p.open('rb')", False),
        ("open(x, 'w', encoding='utf-8')", False),
        ("begun = time.time()", True),
        ("begun = time.monotonic()", False),
        ("assert len(rows) > 8", True),
        ("assert rows is not None", False),
        ("assert isinstance(x, int)", False),
    ],
)
def test_the_check_of_sources(line: str, depends: bool, tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(line + "\n", encoding="utf-8")
    assert depending(tmp_path / "a.py") == ([1] if depends else [])
