"""No two public classes have one name."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from pathlib import Path

from tests.test_layers import FILES

EXCEPTIONS: dict[str, str] = {}
"""Names of two classes, each with the reason; at most two."""


def shared_names(files: Iterable[Path]) -> dict[str, list[str]]:
    """Public class names that occur more than once, nested classes included."""
    found: dict[str, list[str]] = {}
    for file in files:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(f"{file.name}:{node.lineno}")
    return {name: places for name, places in found.items() if len(places) > 1}


def test_public_class_names_are_unique() -> None:
    found = shared_names(FILES.values())
    assert len(EXCEPTIONS) <= 2
    assert {k: v for k, v in found.items() if k not in EXCEPTIONS} == {}
    assert EXCEPTIONS.keys() <= found.keys(), "an exception that is not needed any more"


def test_the_check_sees_a_shared_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "two.py"
    one.write_text("class A: pass\nclass _B: pass\n")
    two.write_text("class _B: pass\nclass C:\n    class A: pass\n")
    assert shared_names([one, two]) == {"A": ["one.py:1", "two.py:3"]}
