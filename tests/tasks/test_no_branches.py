"""Nothing outside optimizer/tasks asks which task a model has: it asks the task."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from prumux.optimizer.tasks.registry import task_types

ROOT = Path(__file__).parents[2]
TASKS = ROOT / "optimizer" / "tasks"
TOPS = ("optimizer", "passes", "export", "bench")
FILES = [
    file
    for top in TOPS
    for file in sorted((ROOT / top).rglob("*.py"))
    if TASKS not in file.parents
]
TEMPLATES = [file for top in TOPS for file in sorted((ROOT / top).rglob("*.jinja"))]
NAMES = {name for x in task_types() for name in (x.name, x.kind, x.problem, x.__name__)}
PROBLEM_TYPES = {x.problem_type for x in task_types()} | {"multi_label_classification"}
"""May be written into a config.json anywhere, but not be compared."""
METRICS = {
    metric.name
    for x in task_types()
    for labels in (("no", "yes"), ("O", "B-X"))
    for metric in x(labels).metrics
}
"""Outside, a metric is asked for its statistic, not for its name."""
MODULES = {x.__module__ for x in task_types()}


def branches(source: str) -> Iterator[str]:
    """Where a module asks for a task's kind: the lines, with what they ask."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Constant) and node.value in NAMES:
            yield f"{line}: the name '{node.value}'"
        elif isinstance(node, ast.Compare | ast.Match | ast.Subscript):
            subject = node.subject if isinstance(node, ast.Match) else node
            parts = list(ast.walk(subject))
            asked = {_asked(x) for x in parts}
            if isinstance(node, ast.Compare):
                asked |= {
                    repr(v) for x in parts if (v := _constant(x)) in PROBLEM_TYPES | METRICS
                }
            for name in sorted(asked - {""}):
                yield f"{line}: {name}"
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield f"{line}: imports {node.module}"


def _asked(node: ast.AST) -> str:
    """`x.problem` or `task.kind`; other things have kinds, too, such as branches."""
    if not isinstance(node, ast.Attribute) or node.attr not in ("kind", "problem"):
        return ""
    owner = ast.unparse(node.value)
    return ast.unparse(node) if node.attr == "problem" or owner.endswith("task") else ""


def _constant(node: ast.AST) -> object:
    return node.value if isinstance(node, ast.Constant) else None


@pytest.mark.parametrize("file", FILES, ids=lambda x: x.relative_to(ROOT).as_posix())
def test_no_module_asks_for_the_kind_of_a_task(file: Path) -> None:
    found = list(branches(file.read_text(encoding="utf-8")))
    if file.parts[-2:] == ("bench", "shapes.py"):  # builds a model, of a task it chooses
        found = [x for x in found if "imports prumux" not in x]
    assert found == []


@pytest.mark.parametrize("file", TEMPLATES, ids=lambda x: x.name)
def test_no_template_asks_for_the_kind_of_a_task(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    blocks = re.findall(r"\{[{%].*?[%}]\}", text, re.DOTALL)
    assert [x for x in blocks if any(f'"{name}"' in x for name in NAMES)] == []


@pytest.mark.parametrize(
    "source",
    [
        'if model.task.kind == "x": pass',
        "if task.kind != other: pass",
        "if model.task.problem in PROBLEMS: pass",
        "auto = CLASSES[task.kind]",
        'is_it = found == "token-classification"',
        'CLASSES = {"regression": 1}',
        "if problem in ('multi_label_classification',): pass",
        'if metric in ("accuracy", "f1"): pass',
        "match model.task.kind:\n    case 'x': pass",
        "from prumux.optimizer.tasks.tokens import Tokens",
    ],
)
def test_the_check_sees(source: str) -> None:
    assert list(branches(source))


@pytest.mark.parametrize(
    "source",
    [
        'if branch.kind == "ffn": pass',
        'report = {"task": model.task.kind}',
        '"""Weighted ridge regression."""',
        'config["problem_type"] = "single_label_classification"',
        "if task.pooling == 'all': pass",
    ],
)
def test_the_check_leaves_alone(source: str) -> None:
    assert not list(branches(source))


def test_all_files_are_read() -> None:
    assert len(FILES) > 100
    assert TEMPLATES
    assert {"regression", "token-classification", "Tokens"} <= NAMES
    assert {"balanced-accuracy", "f1", "pearson", "agreement"} <= METRICS
