"""Distillation brings a small model nearer to the dense one, for every family and task."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
import torch

from prumux.optimizer.base.errors import SpecError
from prumux.optimizer.data.tokenize import Encoded, collate
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, Layer
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.distill import Distill
from prumux.passes.slice import slice_model
from prumux.passes.training.layer_matching import layer_pairs
from prumux.passes.training.teacher import Teacher, observe, teacher
from prumux.passes.training.trainable import TABLES
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import masked

FAMILIES: tuple[Family, ...] = get_args(Family)
PRUNE = "prune{sparsity=0.5 of=macs},slice"


def prepared(
    family: Family = "bert", labels: Any = None, **fields: Any
) -> tuple[Model, Context]:
    """A dense model with data, and the context that knows it."""
    model = random_model(family, (3, 2), (8, 8), hidden=12, **fields)
    ctx = make_context(model, random_batch(model, rows=48, length=10))
    fit = replace(ctx.fit, labels=labels)
    return model, replace(ctx, train=fit, select=fit.take(range(16)))


def harms(model: Model) -> list[float]:
    return list(model.history[-1].notes["validation_loss"])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("task", get_args(Kind))
def test_comes_nearer_to_the_dense_model(family: Family, task: Kind) -> None:
    model, ctx = prepared(family, task=task)
    text = f"{PRUNE},distill{{epochs=30 lr=0.01 batch=16}}"
    after = Pipeline.parse(text).run(model, ctx)
    assert min(harms(after)) < 0.7 * harms(after)[0]
    small = Pipeline.parse(PRUNE).run(model, ctx)
    assert after.encoder == small.encoder
    for name in TABLES:
        if name in small.weights:
            assert torch.equal(after.weights[name], small.weights[name])
    moved = [k for k, v in small.weights.items() if not torch.equal(v, after.weights[k])]
    assert len(moved) > 10


def test_regression_learns_scores() -> None:
    model, ctx = prepared(labels=np.linspace(0.0, 5.0, 48))
    task = Regression(("score",))
    weights = {
        **model.weights,
        "head.output.weight": model.weights["head.output.weight"][:1],
        "head.output.bias": model.weights["head.output.bias"][:1],
    }
    model = replace(
        model, encoder=replace(model.encoder, labels=1), task=task, weights=weights
    )
    ctx = replace(ctx, dense=model)
    after = Pipeline.parse(f"{PRUNE},distill{{epochs=30 lr=0.01 batch=16 labels=0}}").run(
        model, ctx
    )
    assert min(harms(after)) < 0.7 * harms(after)[0]


def test_labels_count() -> None:
    wrong = np.zeros(48, dtype=np.int64)
    model, ctx = prepared(labels=wrong)
    text = "distill{epochs=20 lr=0.01 batch=16 hidden=0 logits=0 labels=1}"
    (distill,) = Pipeline.parse(text).passes
    assert isinstance(distill, Distill)
    after = distill.run(model, ctx)
    # Agreement with the dense model is what the checkpoint is picked by, so it stays put.
    assert all(torch.equal(v, after.weights[k]) for k, v in model.weights.items())
    assert after.notes["validation_loss"][-1] > after.notes["validation_loss"][0] + 0.1


def test_twice_the_same_and_nothing_given_changes() -> None:
    model, ctx = prepared()
    small = Pipeline.parse(PRUNE).run(model, ctx)
    before = {k: v.clone() for k, v in small.weights.items()}
    one, two = (Distill(epochs=2, batch=16).run(small, ctx) for _ in range(2))
    assert all(torch.equal(v, two.weights[k]) for k, v in one.weights.items())
    assert all(torch.equal(v, small.weights[k]) for k, v in before.items())
    other = Distill(epochs=2, batch=16).run(small, replace(ctx, seed=1))
    assert not all(torch.equal(v, other.weights[k]) for k, v in one.weights.items())


def test_a_masked_model_stays_masked() -> None:
    model, ctx = prepared()
    pruned = masked(model, seed=2)
    after = Distill(epochs=1).run(pruned, ctx)
    assert after.stage == "masked"
    slice_model(after).verify()


@pytest.mark.parametrize("task", get_args(Kind))
def test_what_was_said_once_is_remembered(task: Kind) -> None:
    model, ctx = prepared(task=task)
    told = teacher(model, ctx.fit, (0, 1), "cpu")
    assert teacher(model, ctx.fit, (0, 1), "cpu") is told
    long, short = collate(ctx.fit, np.arange(16), 16), collate(ctx.fit, np.array([3, 1, 5]))
    first = told.teach(long)
    assert told.held_bytes > 0
    again, fresh = told.teach(short), Teacher(told.module, (0, 1), "cpu").teach(short)
    real = torch.as_tensor(short.attention_mask).bool()
    for a, b in zip((again, fresh), (fresh, again), strict=True):
        pick = real if task == "token-classification" else slice(None)
        assert torch.allclose(a.logits[pick], b.logits[pick], atol=0.02)
        for layer in (0, 1):
            width = a.states[layer].shape[1]
            at = real[:, :width]
            assert torch.allclose(
                a.states[layer][at].float(), b.states[layer][at].float(), atol=0.05
            )
    assert first.logits.shape[0] == 16


def test_what_does_not_fit_into_memory_is_computed_again() -> None:
    model, ctx = prepared()
    told = replace(
        teacher(model, ctx.fit, (0, 1), "cpu"), held={}, held_bytes=0, limit_bytes=1
    )
    batches = [collate(ctx.fit, np.arange(i, i + 8)) for i in (0, 8)]
    first = [told.teach(b) for b in batches]
    assert len(told.held) == 8  # the batch that crossed the limit
    again = [told.teach(b) for b in batches]
    for a, b in zip(first, again, strict=True):
        assert torch.allclose(a.logits, b.logits, atol=0.02)


def encoder(*layers: tuple[int, int]) -> Encoder:
    return replace(random_model().encoder, layers=tuple(Layer(*x) for x in layers))


@pytest.mark.parametrize(
    ("left", "expected"),
    [
        ([(1, 1), (1, 1), (1, 1), (1, 1)], {0: 0, 1: 1, 2: 2, 3: 3}),
        ([(1, 1), (0, 0), (1, 1), (0, 0)], {0: 1, 2: 3}),
        ([(0, 0), (0, 4), (0, 0), (0, 0)], {1: 3}),
        ([(0, 0)] * 4, {}),
    ],
)
def test_what_the_next_layer_reads_is_matched(
    left: list[tuple[int, int]], expected: dict[int, int]
) -> None:
    assert layer_pairs(encoder(*left), encoder(*[(1, 1)] * 4)) == expected


def test_an_empty_model_still_trains() -> None:
    model, ctx = prepared()
    masks = replace(
        model.masks,
        heads=tuple(torch.zeros_like(m) for m in model.masks.heads),
        ffn=tuple(torch.zeros_like(m) for m in model.masks.ffn),
    )
    empty = slice_model(replace(model, masks=masks))
    after = Distill(epochs=5, lr=0.01, batch=16).run(empty, ctx)
    assert min(after.notes["validation_loss"]) < after.notes["validation_loss"][0]


def test_states_of_a_layer_that_is_gone_are_those_before_it() -> None:
    model = random_model(heads=(2, 0, 2), ffn=(4, 0, 4), hidden=12)
    batch = random_batch(model)
    from prumux.optimizer.model.module import EncoderModule

    seen = observe(EncoderModule(model), batch, "cpu")
    assert torch.equal(seen.states[1], seen.states[0])
    assert not torch.equal(seen.states[2], seen.states[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distill{epochs=1 minutes=1}", "epochs and minutes exclude each other"),
        ("distill{epochs=0}", "epochs must be above 0, not 0"),
        ("distill{lr=-1}", "lr must be above 0, not -1"),
        ("distill{labels=-1}", "labels must be 0 or more, not -1"),
        ("distill{hidden=0 logits=0 labels=0}", "nothing would be learnt"),
    ],
)
def test_bad_options(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Pipeline.parse(text)


def test_rows_without_select_are_checked_on_what_is_there() -> None:
    model, ctx = prepared()
    bare = replace(ctx, train=None, select=None)
    assert isinstance(bare.fit, Encoded)
    small = Pipeline.parse(PRUNE).run(model, bare)
    after = Distill(epochs=1, batch=8).run(small, bare)
    assert len(after.notes["validation_loss"]) > 2
