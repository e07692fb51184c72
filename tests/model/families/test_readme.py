"""passes/README.md, "Write a family": its code reads a checkpoint, is pruned and exported."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import (
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForSequenceClassification,
    RobertaPreLayerNormForTokenClassification,
)

from prumux.export.onnx import Onnx
from prumux.optimizer.model.artifact import load_artifact, save_artifact
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.families.family import Family
from prumux.optimizer.model.families.registry import find_family, model_types
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.pipeline import Pipeline
from tests.helpers.factory import make_context, random_batch

README = Path(__file__).parents[3] / "passes" / "README.md"
TEXT = README.read_text(encoding="utf-8")
TUTORIAL = TEXT[TEXT.index("## Write a family") : TEXT.index("## Write a task")]
LIMIT_LINES = 60
TOLERANCE = 1e-4
"""Largest difference of a logit from transformers'."""
CLASSES: dict[str, Any] = {
    "sequence": RobertaPreLayerNormForSequenceClassification,
    "tokens": RobertaPreLayerNormForTokenClassification,
}


def code(language: str) -> str:
    """The tutorial's only code block in a language."""
    (found,) = re.findall(rf"```{language}\n(.*?)```", TUTORIAL, re.DOTALL)
    return str(found)


@pytest.fixture
def family(monkeypatch: pytest.MonkeyPatch) -> Iterator[Family]:
    """The tutorial's family, executed and registered by its own entry point."""
    ((group, entries),) = tomllib.loads(code("toml"))["project"]["entry-points"].items()
    ((name, value),) = entries.items()
    module = ModuleType(value.split(":")[0])
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code("python"), str(README), "exec"), module.__dict__)
    own, installed = metadata.EntryPoint(name, value, group), metadata.entry_points

    def entry_points(group: str) -> metadata.EntryPoints:
        found = [*installed(group=group), *([own] if own.group == group else [])]
        return metadata.EntryPoints(found)

    monkeypatch.setattr(metadata, "entry_points", entry_points)
    find_family.cache_clear()
    yield find_family(name)
    find_family.cache_clear()


def checkpoint(folder: Path, kind: str) -> Any:
    """A tiny model of transformers with random weights, saved in the folder."""
    config = RobertaPreLayerNormConfig(
        vocab_size=61,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=20,
        max_position_embeddings=34,
    )
    config.num_labels = 3
    torch.manual_seed(0)
    theirs = CLASSES[kind](config).eval()
    with torch.no_grad():
        for name, weight in theirs.named_parameters():
            weight.normal_(1.0 if "Norm.weight" in name else 0.0, 0.2)
    theirs.save_pretrained(folder)
    return theirs


def inputs_of(model: Model, rows: int = 4) -> Mapping[str, Any]:
    return {k: torch.as_tensor(v) for k, v in random_batch(model, rows).inputs().items()}


@pytest.mark.parametrize("kind", CLASSES)
def test_logits_are_those_of_transformers(family: Family, kind: str, tmp_path: Path) -> None:
    theirs = checkpoint(tmp_path, kind)
    model = load_model(str(tmp_path))
    assert find_family(model.encoder.family) is family
    inputs = inputs_of(model)
    with torch.no_grad():
        expected = theirs(**inputs).logits
    found = torch.as_tensor(run(EncoderModule(model), random_batch(model, 4).inputs()))
    if kind == "tokens":
        real = inputs["attention_mask"].bool()
        found, expected = found[real], expected[real]
    assert float(expected.std()) > 0.1
    assert float((found - expected).abs().max()) < TOLERANCE


@pytest.mark.parametrize("kind", CLASSES)
def test_it_is_pruned_mixed_and_exported(family: Family, kind: str, tmp_path: Path) -> None:
    checkpoint(tmp_path / "given", kind)
    model = load_model(str(tmp_path / "given"))
    (text,) = re.findall(r"--passes '([^']*)'", code("sh"))
    context = make_context(model, random_batch(model, 4))
    small = Pipeline.parse(text).run(model, context)
    e = small.encoder
    assert (e.hidden, e.slots) == (18, 2)
    assert sum(x.heads for x in e.layers) == 6
    assert sum(x.ffn for x in e.layers) == 30
    assert small.weights["final.norm.weight"].shape == (18,)
    assert "final.norm.weight" in small.weights
    assert count(replace(e, mux=None), 12).macs < count(model.encoder, 12).macs
    # The export compares the engine's logits with the torch module's.
    Onnx(fusion="none").emit(small, context, tmp_path / "engine")
    save_artifact(small, tmp_path / "artifact")
    again = load_artifact(tmp_path / "artifact")
    assert again.encoder == e
    assert all(torch.equal(again.weights[k], x) for k, x in small.weights.items())


def test_it_is_listed_and_short(family: Family) -> None:
    assert set(family.model_types) <= set(model_types())
    assert code("python").count("\n") <= LIMIT_LINES


def test_the_table_names_members_of_a_family() -> None:
    text = TUTORIAL[TUTORIAL.index("| member | says |") :].split("\n\n")[0]
    named = [
        x for row in text.splitlines()[2:] for x in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    public = {k for k in {**vars(Family), **Family.__annotations__} if k[0] != "_"}
    assert sorted(named) == sorted(public - {"model_types"})
