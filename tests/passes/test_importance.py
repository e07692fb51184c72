"""Importance is the Fisher information of factors of units: per row, and without labels."""

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.store import Store
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.torch_ops import Factors
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.pruning import importance
from prumux.passes.pruning.importance import Scores, fisher, hidden_fisher
from tests.helpers.factory import Family, make_context, random_batch, random_model
from tests.helpers.masking import masked, random_masks

FAMILIES: tuple[Family, ...] = get_args(Family)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws below are exact in float32; bfloat16 only makes scoring faster."""
    monkeypatch.setattr(importance, "autocast", lambda device: nullcontext())


def tiny(family: Family = "bert", **fields: Any) -> Model:
    return random_model(family, heads=(3, 2), ffn=(6, 5), hidden=12, **fields)


def flat(scores: Scores) -> list[Tensor]:
    return [*scores.heads, *scores.ffn]


def by_hand(model: Model, rows: int = 7) -> list[Tensor]:
    """One row at a time, one class at a time, probabilities written out."""
    ctx = make_context(model, random_batch(model, rows=rows))
    module, half = EncoderModule(model), len(model.encoder.layers)
    masks = [m.float() for m in (*model.masks.heads, *model.masks.ffn)]
    total = [torch.zeros(len(m)) for m in masks]
    for i in range(rows):
        (batch,) = batches(ctx.fit.take([i]), 1)
        inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
        for c in range(model.encoder.labels):
            z = [torch.ones(len(m), requires_grad=True) for m in masks]
            alive = [a * m for a, m in zip(z, masks, strict=True)]
            factors = Factors(tuple(alive[:half]), tuple(alive[half:]), module.factors.hidden)
            logits = module(**inputs, factors=factors)[0]
            p = torch.softmax(logits, dim=0)
            if isinstance(model.task, Regression):
                target, weight = logits[0], 1.0
            else:
                target, weight = p[c].log(), float(p[c].detach())
            grads = torch.autograd.grad(target, z, allow_unused=True)
            for at, grad in zip(total, grads, strict=True):
                if grad is not None:
                    at.add_(weight * grad.square() / rows)
    return total


def agree(model: Model) -> None:
    ctx = make_context(model, random_batch(model, rows=7))
    for found, expected in zip(flat(fisher(model, ctx)), by_hand(model), strict=True):
        assert torch.allclose(found, expected, rtol=1e-3, atol=1e-8)
        assert float(found.max()) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_importance_is_that_of_an_explicit_loop(family: Family) -> None:
    agree(tiny(family))
    agree(tiny(family, labels=3))


def test_importance_of_a_regression() -> None:
    model = tiny(labels=1)
    agree(replace(model, task=Regression(("score",))))


def test_importance_of_a_masked_model() -> None:
    model = masked(tiny(), seed=3, gone=0.0)
    ctx = make_context(model, random_batch(model, rows=7))
    found = flat(fisher(model, ctx))
    masks = (*model.masks.heads, *model.masks.ffn)
    assert all(bool((x[~m] == 0).all()) for x, m in zip(found, masks, strict=True))
    for a, b in zip(found, by_hand(model), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-8)
    hidden = replace(model.masks, hidden=random_masks(model.encoder, 2).hidden)
    narrow = replace(model, masks=hidden)
    for a, b in zip(flat(fisher(narrow, ctx)), by_hand(narrow), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-8)


def by_differences(model: Model, rows: int = 7, step: float = 1e-4) -> Tensor:
    """Hidden importance [D] without gradients: each factor moved up and down, in float64."""
    (batch,) = batches(make_context(model, random_batch(model, rows=rows)).fit, rows)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    module, alive = EncoderModule(model).double(), model.masks.hidden.double()
    own = module.factors

    def log_p(z: Tensor) -> Tensor:
        logits: Tensor = module(**inputs, factors=Factors(own.heads, own.ffn, z))
        return torch.log_softmax(logits, dim=-1)

    p, total = log_p(alive).exp(), torch.zeros(len(alive), dtype=torch.float64)
    for k in alive.nonzero()[:, 0]:
        move = torch.zeros_like(alive)
        move[k] = step
        slope = (log_p(alive + move) - log_p(alive - move)) / (2 * step)
        total[k] = (p * slope.square()).sum() / rows
    return total.float()


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_importance_is_that_of_finite_differences(family: Family, early: bool) -> None:
    model = tiny(family, labels=3)
    model = replace(model, encoder=replace(model.encoder, pool_early=early))
    for seed in (None, 2):
        if seed is not None:
            model = replace(model, masks=random_masks(model.encoder, seed, gone=0.0))
            assert not bool(model.masks.hidden.all())
        ctx = make_context(model, random_batch(model, rows=7))
        found, expected = hidden_fisher(model, ctx), by_differences(model)
        assert found.shape == (12,)
        assert torch.allclose(found, expected, rtol=2e-3, atol=1e-7)
        assert bool(((found > 1e-6) == model.masks.hidden).all())


def test_hidden_importance_of_token_tasks_looks_at_every_position() -> None:
    model = tiny(task="token-classification")
    ctx = make_context(model, random_batch(model, rows=7))
    first = replace(ctx.fit, ids=Ragged.of(row[:1] for row in ctx.fit.ids), types=None)
    assert float(hidden_fisher(model, ctx).min()) > 0
    many, one = hidden_fisher(model, ctx), hidden_fisher(model, replace(ctx, fit=first))
    assert float(many.sum()) > 1.5 * float(one.sum())


def test_labels_play_no_part() -> None:
    model = tiny()
    ctx = make_context(model, random_batch(model, rows=7))
    wrong = replace(ctx.fit, labels=np.arange(7) % 2)
    one, two = fisher(model, ctx), fisher(model, replace(ctx, fit=wrong))
    assert all(torch.equal(a, b) for a, b in zip(flat(one), flat(two), strict=True))


def test_batches_play_no_part(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    ctx = make_context(model, random_batch(model, rows=9))
    one = fisher(model, ctx)
    monkeypatch.setattr(importance, "BATCH", 2)
    for a, b in zip(flat(one), flat(fisher(model, ctx)), strict=True):
        assert torch.allclose(a, b, rtol=1e-4)


@pytest.mark.parametrize("labels", [3, 9])
def test_estimates_come_near_the_explicit_sum(
    monkeypatch: pytest.MonkeyPatch, labels: int
) -> None:
    """Tokens are summed with random signs, many classes are drawn: right on average."""
    model = tiny(task="token-classification", labels=labels)
    (batch,) = batches(make_context(model, random_batch(model, rows=2, length=4)).fit, 2)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    ones = torch.ones(2, 3, requires_grad=True)
    rest = torch.ones(2, 2)
    ffn = (torch.ones(2, 6), torch.ones(2, 5))
    log_p = EncoderModule(model)(**inputs, factors=Factors((ones, rest), ffn, None))
    log_p = torch.log_softmax(log_p, dim=-1)
    expected = torch.zeros(3)
    for r, t in np.argwhere(batch.attention_mask == 1):
        for c in range(labels):
            (grad,) = torch.autograd.grad(log_p[r, t, c], ones, retain_graph=True)
            expected += log_p[r, t, c].exp() * grad.square().sum(0) / 2
    ctx = make_context(model, random_batch(model, rows=2, length=4))
    runs = [fisher(model, replace(ctx, seed=seed)).heads[0] for seed in range(150)]
    found = torch.stack(runs)
    error = found.std(0) / len(runs) ** 0.5
    assert bool(((found.mean(0) - expected).abs() < 4 * error + 1e-6).all())


def test_scores_are_kept_for_the_same_model_and_rows(tmp_path: Path) -> None:
    model = tiny()
    ctx = make_context(model, random_batch(model, rows=7), store=Store(tmp_path))

    def files() -> int:
        return len(list(tmp_path.iterdir()))

    first = flat(fisher(model, ctx))
    assert all(torch.equal(a, b) for a, b in zip(first, flat(fisher(model, ctx)), strict=True))
    assert files() == 1
    hidden = hidden_fisher(model, ctx)
    assert torch.equal(hidden_fisher(model, ctx), hidden)
    assert files() == 2
    others = [
        replace(model, encoder=replace(model.encoder, activation="relu")),
        masked(model, seed=1),
        replace(model, masks=random_masks(model.encoder, 2)),
        tiny(seed=1),
    ]
    for i, other in enumerate(others):
        fisher(other, ctx)
        assert files() == 3 + i
    assert ctx.fit.types is not None
    types = replace(ctx.fit.types, values=1 - ctx.fit.types.values)
    fisher(model, replace(ctx, fit=replace(ctx.fit, types=types)))
    assert files() == 7
