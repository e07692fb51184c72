"""What the core asks of passes, and that it asks nothing else."""

from __future__ import annotations

import ast

import pytest

from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import all_passes
from tests.test_layers import FILES

CORE = ("search", "run", "workers", "pipeline", "timing", "report")
TRAINED = Pipeline.parse("distill,warm-up,distill{epochs=2},learn-masks{sparsity=0.5}").passes
OTHERS = Pipeline.parse("prune{sparsity=0.5},slice,mux{n=2},reconstruct,pool-early").passes


@pytest.mark.parametrize("pass_", TRAINED, ids=str)
def test_a_training_length_in_minutes_replaces_epochs(pass_: Pass) -> None:
    assert pass_.training is not None
    assert pass_.training.minutes is None
    assert pass_.training.epochs > 0
    timed = pass_.with_minutes(2.5)
    assert timed.training is not None
    assert timed.training.minutes == 2.5
    assert "minutes=2.5" in str(timed)
    assert Pipeline.parse(str(timed)).passes == (timed,)


@pytest.mark.parametrize("pass_", OTHERS, ids=str)
def test_a_pass_that_does_not_train_stays(pass_: Pass) -> None:
    assert pass_.training is None
    assert pass_.with_minutes(2.5) is pass_


@pytest.mark.parametrize("pass_", [*TRAINED, *OTHERS], ids=str)
def test_a_sketch_is_quick(pass_: Pass) -> None:
    sketch = pass_.sketch()
    assert sketch is None or (sketch.training is None and sketch.sketch() == sketch)


def test_the_protocol_is_listed_in_its_docstring() -> None:
    members = {k for k in vars(Pass) if not k.startswith("_")} - {"run", "name"}
    listed = {
        line.split("`")[1] for line in (Pass.__doc__ or "").splitlines() if "`  " in line
    }
    assert {x.partition("(")[0] for x in listed} == members


def test_masks_that_are_added_have_to_be_cut() -> None:
    assert Pipeline.parse("prune{sparsity=0.5}").uncut
    assert Pipeline.parse("slice,prune-heads{ratio=0.5}").uncut
    assert not Pipeline.parse("prune{sparsity=0.5},slice,distill").uncut
    assert not Pipeline.parse("distill").uncut


def asked_by_name(tree: ast.AST) -> list[int]:
    """Lines that compare a name with a text, or read an attribute by a constant text."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = any(isinstance(x, ast.Attribute) and x.attr == "name" for x in sides)
            if named and any(isinstance(x, ast.Constant) for x in sides):
                found.append(node.lineno)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "getattr":
            found += [node.lineno] * isinstance(node.args[1], ast.Constant)
    return found


def test_the_core_asks_no_pass_by_its_name() -> None:
    files = [x for x in FILES.values() if x.parent.name in CORE and "optimizer" in x.parts]
    assert len(files) > 40
    wrong = {x.name: asked_by_name(ast.parse(x.read_text(encoding="utf-8"))) for x in files}
    assert {k: v for k, v in wrong.items() if v} == {}
    assert asked_by_name(ast.parse('p.name == "mux"')) == [1]
    assert asked_by_name(ast.parse('getattr(p, "minutes", None)')) == [1]


def test_no_pass_has_another_name_for_a_member() -> None:
    old = {"shapes", "trains", "marks", "cuts", "reads", "mixes", "stand_in"}
    assert [x.name for x in all_passes() if old & set(dir(x))] == []


def test_pipelines_grow_and_shrink() -> None:
    whole = Pipeline(OTHERS)
    assert whole.prefix(2).then(*OTHERS[2:]) == whole
    assert str(whole.prefix(0)) == ""
