"""The shape of the source tree: imports between folders go one way, nothing grows too large.

Imports inside functions and under `TYPE_CHECKING` count as well.
"""

import ast
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOPS = ("optimizer", "passes", "export")
LIMIT_LINES = 400
LIMIT_MODULES = 20

ORDER = (
    "optimizer/base",
    "optimizer/tasks",
    "optimizer/model",
    "optimizer/data",
    "optimizer/pipeline",
    "optimizer/certificate",
    "optimizer/timing",
    "optimizer/search",
    "optimizer/workers",
    "optimizer/report",
    "optimizer/run",
    "optimizer/cli",
)
"""Folders of the core: each may import those before it."""
HELPERS = (
    "passes/training",
    "passes/multiplexing",
    "passes/refit",
    "passes/pruning",
    "passes/gates",
    "export/graph",
    "export/trt",
    "export/runtime",
    "export/triton",
    "export/benchmark",
)
"""Helper folders of passes and of targets: each may import those before it of its own side."""


def module_files() -> dict[str, Path]:
    """Dotted module name -> file, of everything that is shipped."""
    found = {}
    for top in TOPS:
        for file in sorted((ROOT / top).rglob("*.py")):
            parts = file.relative_to(ROOT).with_suffix("").parts
            if parts[:2] == ("optimizer", "prumux"):
                parts = parts[2:]
            name = ".".join(("prumux", *(x for x in parts if x != "__init__")))
            found[name] = file
    return found


FILES = module_files()


def imported(file: Path, package: str) -> Iterator[str]:
    """Names of prumux's modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level <= 1, f"{file}:{node.lineno} imports from a parent folder"
            base = node.module or ""
            if node.level:
                base = f"{package}.{base}" if base else package
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            assert name.split(".")[0] not in TOPS, (
                f"{file} imports '{name}', not 'prumux.{name}'"
            )
            if name in FILES:
                yield name


def package_of(name: str) -> str:
    """The package that relative imports of a module start from."""
    return name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]


@cache  # not while tests are collected, which every worker does
def edges() -> dict[str, set[str]]:
    """The modules that each module imports."""
    return {x: set(imported(file, package_of(x))) - {x} for x, file in FILES.items()}


def folder_of(name: str) -> str:
    """The folder of a module, relative to the root."""
    return FILES[name].parent.relative_to(ROOT).as_posix()


def allowed(source: str, aim: str) -> bool:
    """Whether a module in folder `source` may import one in folder `aim`."""
    if source in (aim, "optimizer/prumux") or aim == "optimizer":
        return True
    top, aim_top = source.split("/", maxsplit=1)[0], aim.split("/", maxsplit=1)[0]
    if aim_top == "optimizer":
        source, aim = ("/".join(x.split("/")[:2]) for x in (source, aim))
        return top != "optimizer" or ORDER.index(aim) <= ORDER.index(source)
    if top != aim_top or aim == top:
        return False
    # A pass or a target imports its helpers, and a helper those before it.
    return source == top or HELPERS.index(aim) < HELPERS.index(source)


@pytest.mark.parametrize("name", FILES)
def test_imports_between_folders_go_one_way(name: str) -> None:
    wrong = {x for x in edges()[name] if not allowed(folder_of(name), folder_of(x))}
    assert wrong == set()


def test_no_module_imports_itself_through_others() -> None:
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        state[name] = 1
        for other in sorted(edges()[name]):
            # Python itself imports a package before its modules.
            if name.startswith(f"{other}.") and FILES[other].name == "__init__.py":
                continue
            assert state.get(other) != 1, " -> ".join([*path[path.index(other) :], other])
            if other not in state:
                visit(other, (*path, other))
        state[name] = 2

    for name in FILES:
        if name not in state:
            visit(name, (name,))


@pytest.mark.parametrize("name", FILES)
def test_files_stay_small(name: str) -> None:
    lines = FILES[name].read_text(encoding="utf-8").count("\n")
    assert lines <= LIMIT_LINES


def test_folders_stay_small() -> None:
    counts: dict[str, int] = {}
    for name in FILES:
        counts[folder_of(name)] = counts.get(folder_of(name), 0) + 1
    assert {k: n for k, n in counts.items() if n > LIMIT_MODULES} == {}
    assert len(counts) > 20


def test_every_folder_is_installed() -> None:
    """An editable install links the packages that pyproject.toml lists, and no others."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = set(project["tool"]["setuptools"]["packages"])
    folders = (
        x.parent.relative_to(ROOT) for top in TOPS for x in (ROOT / top).rglob("__init__.py")
    )
    found = {"prumux", *(".".join(("prumux", *x.parts)) for x in folders)}
    assert listed == found - {"prumux.optimizer.prumux"}


def test_the_check_sees_what_is_forbidden(tmp_path: Path) -> None:
    file = tmp_path / "x.py"
    file.write_text(
        "def f():\n"
        "    from prumux.export import onnx\n"
        "    import prumux.optimizer.base.errors\n"
    )
    found = set(imported(file, "prumux.passes"))
    assert found == {"prumux.export", "prumux.export.onnx", "prumux.optimizer.base.errors"}
    assert not allowed("passes", "export")
    assert not allowed("optimizer/base", "optimizer/run")
    file.write_text("import optimizer.base")
    with pytest.raises(AssertionError, match=r"not 'prumux\.optimizer"):
        list(imported(file, "prumux.passes"))
