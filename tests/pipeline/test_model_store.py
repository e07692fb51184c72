"""Models of candidates on disk: loaded whole again, and no larger than needed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prumux.optimizer.base.store import Store
from prumux.optimizer.pipeline.model_store import ModelStore
from prumux.optimizer.pipeline.pipeline import Pipeline
from tests.helpers.factory import make_context, random_batch, random_model

CUT = "prune-ffn{ratio=0.5},slice"
SAME = "embeddings.word"


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (CUT, True),
        ("pool-early,prune-heads{ratio=0.3}", True),
        ("prune-hidden{ratio=0.25},slice", False),
        (f'{CUT},cascade{{to="pool-early"}}', True),
    ],
)
def test_weights_of_the_given_model_are_not_stored_again(
    text: str, shared: bool, tmp_path: Path
) -> None:
    given = random_model(heads=(3, 3), head_dim=16)
    ctx = make_context(given, random_batch(given, rows=40), store=Store(tmp_path))
    pipeline, models = Pipeline.parse(text), ModelStore(given, ctx.store)
    built = models.build(pipeline, ctx)
    stored = load_file(tmp_path / f"{models.name(pipeline)}.safetensors")
    assert any(SAME in x for x in given.weights)
    assert (not any(SAME in x for x in stored)) == shared
    found = models.load(pipeline)
    found.verify()
    assert found.history == built.history
    pairs = [(found, built)]
    if built.second is not None:
        assert found.second is not None
        pairs.append((found.second.model, built.second.model))
    for one, other in pairs:
        assert one.weights.keys() == other.weights.keys()
        for name, x in one.weights.items():
            assert torch.equal(x, other.weights[name]), name


def test_a_weight_that_changed_a_little_is_stored(tmp_path: Path) -> None:
    given = random_model()
    name = next(x for x in given.weights if SAME in x)
    weight = given.weights[name].clone()
    weight.view(-1)[-1] += 1e-6
    changed = replace(given, weights={**given.weights, name: weight})
    models, pipeline = ModelStore(given, Store(tmp_path)), Pipeline.parse("pool-early")
    models.save(pipeline, changed)
    assert load_file(tmp_path / f"{models.name(pipeline)}.safetensors").keys() == {name}
    assert torch.equal(models.load(pipeline).weights[name], weight)
