"""What `import prumux` offers, and what it costs."""

import ast
import inspect
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import prumux

NAMES = [name for name in prumux.__all__ if not name.startswith("__")]


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name(name: str) -> None:
    found = getattr(prumux, name)
    assert inspect.getdoc(found)
    assert found.__module__ == prumux._HOMES[name]
    assert getattr(import_module(found.__module__), name) is found
    if inspect.isclass(found):
        members = [(k, v) for k, v in vars(found).items() if not k.startswith("_")]
        methods = [k for k, v in members if inspect.isfunction(v) or isinstance(v, property)]
        assert [k for k in methods if not inspect.getdoc(getattr(found, k))] == []


def test_the_lists_agree() -> None:
    assert prumux.__doc__
    assert sorted(prumux._HOMES) == sorted(NAMES)
    assert dir(prumux) == sorted(prumux.__all__)
    assert prumux.__version__ == metadata.version("prumux")
    tree = ast.parse(Path(inspect.getfile(prumux)).read_text(encoding="utf-8"))
    (block,) = [x for x in tree.body if isinstance(x, ast.If)]
    typed = {
        alias.name: line.module
        for line in block.body
        if isinstance(line, ast.ImportFrom)
        for alias in line.names
    }
    assert typed == prumux._HOMES


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="module 'prumux' has no attribute 'lode'"):
        prumux.lode  # noqa: B018


def test_import_is_quick_and_light() -> None:
    code = """
import sys, time
start = time.perf_counter()
import prumux
seconds = time.perf_counter() - start
heavy = {'torch', 'transformers', 'onnxruntime', 'onnx', 'numpy'} & set(sys.modules)
assert not heavy, heavy
assert prumux.PrumuxError and not {'torch', 'transformers'} & set(sys.modules)
assert seconds < 0.5, seconds
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
