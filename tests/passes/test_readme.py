"""passes/README.md: the table is the registry's, pipelines parse, the tutorial runs."""

import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import torch

from prumux.optimizer.base.errors import SpecError
from prumux.optimizer.pipeline import registry
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import all_passes
from prumux.optimizer.tasks.task import Task
from tests.helpers.factory import make_context, random_model

README = Path(__file__).parents[2] / "passes" / "README.md"
TEXT = README.read_text(encoding="utf-8")
TUTORIAL = TEXT[TEXT.index("## Write a pass") : TEXT.index("## Write a family")]


def table_row(one: type[Pass]) -> str:
    """A pass's row in the README, up to the cell that says when to use it."""
    told = one.describe()
    options = (x.name if x.default is None else f"{x.name}={x.default}" for x in told.options)
    cells = f"`{told.name}`", told.summary, ", ".join(f"`{x}`" for x in options)
    return f"| {' | '.join(cells)} |"


def code(language: str) -> str:
    """The tutorial's only code block in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)
    return str(found)


def pipelines(text: str) -> list[str]:
    """Every pipeline of a shell command in a text."""
    return re.findall(r"--passes '([^']*)'", text)


def test_the_table_is_that_of_the_registry() -> None:
    table = TEXT[TEXT.index("| pass | does |") :].partition("\n\n")[0].splitlines()[2:]
    expected = [table_row(one) for one in all_passes()]
    assert [row[: row.rindex("|", 0, -1) + 1] for row in table] == expected
    assert all(row[row.rindex("|", 0, -1) :].strip("| ") for row in table)


def test_every_pass_shows_an_example_that_parses() -> None:
    for one in all_passes():
        if one.name == "slice":
            continue
        (example,) = re.findall(r"Example: `(.*)`", one.__doc__ or "")
        parsed = Pipeline.parse(example)
        assert any(isinstance(x, one) for x in parsed.passes), example


def test_every_pass_file_says_its_name_and_is_short() -> None:
    for one in all_passes():
        if one.name == "slice":
            continue
        module = sys.modules[one.__module__]
        assert (module.__doc__ or "").startswith(f"`{one.name}`: ")
        assert module.__file__ is not None
        assert Path(module.__file__).read_text(encoding="utf-8").count("\n") <= 150


def test_the_pipelines_parse() -> None:
    before = TEXT[: TEXT.index("## Write a pass")]
    found = [
        *pipelines(before),
        *re.findall(r"^\| [a-z ]+ \| `(.*)` \|$", before, re.MULTILINE),
    ]
    assert len(found) == 12
    for text in found:
        if "|" in text:
            assert len(Pipeline.space(text)) > 1
        else:
            Pipeline.parse(text)


@pytest.fixture
def tutorial(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Pass]]:
    """The tutorial's pass, executed and registered beside prumux's by its own entry point."""
    module = ModuleType("prune_magnitude")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code("python"), str(README), "exec"), module.__dict__)
    ((group, entries),) = tomllib.loads(code("toml"))["project"]["entry-points"].items()
    own = [metadata.EntryPoint(name, value, group) for name, value in entries.items()]
    shipped = metadata.entry_points(group=group)
    points = metadata.EntryPoints([*shipped, *own])
    monkeypatch.setattr(metadata, "entry_points", lambda group: points.select(group=group))
    registry.forget()
    (name,) = entries
    yield registry.find_pass(name)
    registry.forget()


def test_the_table_of_a_task_lists_what_is_abstract() -> None:
    text = TEXT[TEXT.index("| a task must define |") :].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", text)) - {"head", "problem_type", "statistic"} == set(
        Task.__abstractmethods__
    )
    folder = README.parents[1] / "optimizer" / "tasks"
    copied = re.findall(r"^\| one \w+ a \w+ \| `(.*)` \|$", TEXT, re.MULTILINE)
    assert copied == [x for x in copied if (folder / x).exists()] != []


def test_the_tutorials_pass_runs_in_a_pipeline(tutorial: type[Pass]) -> None:
    model = random_model(heads=(3, 2, 2), ffn=(8, 0, 6), hidden=12)
    run, *searched = pipelines(code("sh"))
    pipeline = Pipeline.parse(run)
    assert str(pipeline) == run
    found = pipeline.run(model, make_context(model))
    assert [x.ffn for x in found.encoder.layers] == [4, 0, 3]
    up, down = (model.weights[f"layers.0.ffn.{x}.weight"] for x in ("up", "down"))
    best = (up.norm(dim=1) * down.norm(dim=0)).topk(4).indices.sort().values
    assert torch.equal(found.weights["layers.0.ffn.up.weight"], up[best])
    assert found.history[0].spec == "prune-magnitude{ratio=0.5}"
    assert found.history[0].notes == {"ffn": [4, 0, 3]}
    assert len(searched) == 1
    assert searched[0].count("|") == 2


def test_the_tutorials_pass_declares_only_what_the_protocol_has(tutorial: type[Pass]) -> None:
    declared = {k for k, hint in tutorial.__annotations__.items() if "ClassVar" in hint}
    assert "name" in declared
    assert {x for x in declared - {"name"} if not hasattr(Pass, x)} == set()


def test_the_tutorials_pass_refuses_and_offers(tutorial: type[Pass]) -> None:
    with pytest.raises(SpecError, match=r"ratio must be in \[0, 1\], not 1\.5"):
        Pipeline.parse("prune-magnitude{ratio=1.5},slice")
    model = random_model(heads=(3, 2), ffn=(8, 8), hidden=12)
    sizes = []
    for choice in tutorial.choices(model):
        masks = choice.run(model, make_context(model)).masks
        sizes.append(int(sum(m.sum() for m in masks.ffn)))
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1] > 0
    masked = next(iter(tutorial.choices(model))).run(model, make_context(model))
    assert not masked.masks.all_true
