"""Imports point one way: passes -> optimizer <- export. And no file grows beyond its limit."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "optimizer": {"optimizer"},
    "passes": {"optimizer", "passes"},
    "export": {"optimizer", "export"},
}
FILES = sorted(x for folder in MAY_IMPORT for x in (ROOT / folder).glob("*.py"))


def imported(file: Path) -> set[str]:
    """The parts of prumux that a file imports, anywhere in it: `optimizer`, `passes`, ..."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{file.name}:{node.lineno} imports from a parent folder"
            names = [f"prumux.{file.parent.name}"] if node.level else [node.module or ""]
            if names == ["prumux"]:
                names = [f"prumux.{alias.name}" for alias in node.names]
        for name in names:
            top, _, rest = name.partition(".")
            assert top not in MAY_IMPORT, f"{file.name} imports '{top}', not 'prumux.{top}'"
            if top == "prumux" and rest:
                found.add(rest.split(".")[0])
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda x: f"{x.parent.name}/{x.name}")
def test_imports_point_one_way(file: Path) -> None:
    assert imported(file) <= MAY_IMPORT[file.parent.name]


def test_every_part_is_looked_at() -> None:
    assert {x.parent.name for x in FILES} == MAY_IMPORT.keys()
    assert len(FILES) > 30


def test_the_check_sees_what_is_forbidden(tmp_path: Path) -> None:
    (tmp_path / "passes").mkdir()
    file = tmp_path / "passes" / "x.py"
    file.write_text(
        "def f():\n    from prumux.export import onnx\n    import prumux.optimizer.ir\n"
    )
    assert imported(file) == {"export", "optimizer"}
    file.write_text("from prumux import export\nfrom .y import z\n")
    assert imported(file) == {"export", "passes"}
    file.write_text("import optimizer.ir")
    with pytest.raises(AssertionError, match=r"not 'prumux\.optimizer'"):
        imported(file)
