"""optimizer/README.md says what the code says: picture, paths, code, figures, papers."""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path
from urllib.parse import unquote

import pytest

from prumux.optimizer.certificate import confidence_bounds
from prumux.optimizer.certificate.certificate import CONFIDENCE
from prumux.optimizer.model import axes
from prumux.optimizer.model.families.bert import Bert
from prumux.optimizer.model.ops import Ops
from prumux.optimizer.run import choose
from prumux.optimizer.search import (
    accuracy_model,
    acquisition,
    bisection,
    cascades,
    progressive,
    progressive_run,
)
from prumux.optimizer.search.progressive_certificates import FALLBACK_CONFIDENCE
from tests.test_layers import ORDER, ROOT, edges, folder_of

TEXT = (ROOT / "optimizer" / "README.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def table(header: str) -> list[list[str]]:
    """The cells of a table's rows, found by its header."""
    lines = TEXT[TEXT.index(header) :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def drawn(folder: str) -> str:
    """The name of a folder in the picture."""
    top, _, inner = folder.partition("/")
    return inner.split("/")[0] if top == "optimizer" else top


def test_the_picture_shows_all_imports_and_only_those() -> None:
    picture = TEXT[TEXT.index("```mermaid") :].split("```")[1]
    picture = re.sub(r'\["[^"]*"\]', "", picture)
    arrows = [tuple(x) for x in re.findall(r"(\w+) --> (\w+)", picture)]
    real = {
        (drawn(folder_of(name)), drawn(folder_of(aim)))
        for name, aims in edges().items()
        for aim in aims
    }
    real = {(a, b) for a, b in real if a != b}
    assert {x for x in arrows if x not in real} == set()

    def below(folder: str) -> set[str]:
        aims = {b for a, b in arrows if a == folder}
        return aims.union(*(below(x) for x in aims))

    assert {(a, b) for a, b in real if b not in below(a)} == set()


def test_every_folder_has_a_line() -> None:
    named = [row[0] for row in table("| folder | what it is | to add |")]
    folders = {*(x.removeprefix("optimizer/") for x in ORDER), "prumux"}
    assert sorted(named) == sorted(f"`{x}/`" for x in folders)


def test_every_path_exists() -> None:
    paths = re.findall(r"`([\w./]+/[\w./]*)`", TEXT)
    assert len(paths) > 50
    homes = (ROOT, ROOT / "optimizer")
    assert [x for x in paths if not any((home / x).exists() for home in homes)] == []
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", TEXT)
    inside = [x for x in links if not x.startswith("https:")]
    assert len(inside) > 8
    assert [x for x in inside if not (ROOT / "optimizer" / x).exists()] == []


@pytest.mark.parametrize(
    ("code", "source"), [*zip(PYTHON, (Bert.branch_weights, Bert.inner), strict=True)]
)
def test_the_excerpts_are_the_code(code: str, source: object) -> None:
    assert code == textwrap.dedent(inspect.getsource(source))  # type: ignore[arg-type]


def test_the_table_of_operators_is_the_protocol() -> None:
    rows = table("| operator | `TorchOps` runs it")
    operators = [k for k, x in vars(Ops).items() if inspect.isfunction(x) and k[0] != "_"]
    assert [row[0] for row in rows] == [f"`{x}`" for x in operators]
    assert all(len(row) == 4 and all(row) for row in rows)


def test_the_table_of_axes_is_complete() -> None:
    named = [row[0].strip("`") for row in table("| axis | length | mask that cuts it |")]
    made = [k for k, x in vars(axes).items() if isinstance(x, axes.Axis)]
    assert named == [*made, "fixed(n)"]


def test_figures_are_those_of_the_code() -> None:
    text = " ".join(TEXT.split())
    assert f"by a factor of {cascades.LEAST_GAIN:g}" in text
    assert (choose.CASCADES, progressive_run.CASCADES) == (2, 5)
    assert "`quick` tries two cascades, the other efforts five" in text
    assert f"= {100 * CONFIDENCE:.0f} % and one-sided" in text
    assert f"at most {bisection.SAFE_SHARE:g} of the loss" in text
    assert f"probability below {acquisition.FAIR_CHANCE:g} are not tried" in text
    assert f"a chance of at least {acquisition.FAIR_CHANCE:g}" in text
    assert accuracy_model.STEP_BEFORE == 0.5, "half a factor of two"
    assert f"loses up to {progressive.GAIN:g}x the limit is accepted" in text
    assert f"at most {progressive.EASY:g}x the limit" in text
    assert f"above {progressive.ENOUGH:g}x no deeper cut" in text
    assert f"= {1 - FALLBACK_CONFIDENCE:.2f} of the total {1 - CONFIDENCE:.2f}" in text
    assert f"{1 - CONFIDENCE:.2f}, else at {FALLBACK_CONFIDENCE - CONFIDENCE:.2f}" in text
    assert "50    92.8 %" in (confidence_bounds.accuracy_upper.__doc__ or "")
    assert "covers 92.8 %" in text


def test_papers_are_those_that_the_code_cites() -> None:
    tops = ("optimizer", "passes", "export")
    files = [file for top in tops for file in sorted((ROOT / top).rglob("*.py"))]
    code = "".join(file.read_text(encoding="utf-8") for file in files)
    papers = {unquote(x) for x in re.findall(r"https://[^\s,]+?(?=[);,]?(?:\s|$))", TEXT)}
    papers = {x.rstrip(").;,") for x in papers}
    assert len(papers) > 10
    assert {x for x in papers if x not in code} == set()


def test_headings_that_other_pages_link_to_exist() -> None:
    passes = (Path(ROOT) / "passes" / "README.md").read_text(encoding="utf-8")
    anchors = re.findall(r"passes/README\.md#([\w-]+)", TEXT)
    headings = {x.lower().replace(" ", "-") for x in re.findall(r"^#+ (.*)$", passes, re.M)}
    assert anchors
    assert set(anchors) <= headings
