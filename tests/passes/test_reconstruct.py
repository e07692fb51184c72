"""Least squares without gradient steps: nearer to the dense model, and exactly as written."""

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes import reconstruct
from prumux.passes.reconstruct import Reconstruct
from prumux.passes.refit import dense_stream
from prumux.passes.refit.least_squares import RidgeRegression
from prumux.passes.refit.refit import UNREAD_WEIGHT
from prumux.passes.slice import slice_model
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import logits, masked, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)


def context(model: Model, rows: int = 64, **fields: Any) -> Context:
    batch = random_batch(model, rows=rows, length=10)
    return make_context(model, batch, **fields)


def distance(model: Model, ctx: Context) -> float:
    (batch,) = ctx.workload
    return float((logits(model, batch) - logits(ctx.dense, batch)).square().mean())


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_refit_comes_nearer_to_the_dense_model(family: Family, task: Kind) -> None:
    dense = random_model(family, task=task)
    ctx = context(dense)
    for text in ("prune{sparsity=0.3}", "prune{sparsity=0.6}", "prune-layers{ffn=1}"):
        pruned = Pipeline.parse(f"{text},slice").run(dense, ctx)
        refitted = Reconstruct().run(pruned, ctx)
        refitted.verify()
        assert distance(refitted, ctx) < 0.7 * distance(pruned, ctx)
        left = refitted.notes["error_left"]
        assert set(left) >= {"head"}
        assert all(0 <= x <= 1 for x in left.values())


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("at", [0, 2])
def test_mixed_rows_come_nearer_to_the_dense_ones(at: int, task: Kind) -> None:
    dense = random_model(task=task, hidden=64)
    ctx = context(dense, rows=256)
    for text in ("", "prune{sparsity=0.4},slice,", "prune-layers{ffn=3},slice,"):
        mixed = Pipeline.parse(f"{text}mux{{n=2 at={at}}}").run(dense, ctx)
        refitted = Reconstruct().run(mixed, ctx)
        refitted.verify()
        assert refitted.encoder == mixed.encoder
        assert distance(refitted, ctx) < 0.8 * distance(mixed, ctx)


def test_one_dimension_has_no_spread() -> None:
    dense = random_model(heads=(1,), ffn=(4,), hidden=4, head_dim=4)
    text = "mux{n=2},prune-hidden{keep=1},slice,reconstruct"
    refitted = Pipeline.parse(text).run(dense, context(dense))
    assert all(bool(x.isfinite().all()) for x in refitted.weights.values())


@pytest.mark.parametrize("early", [False, True])
def test_pool_early_is_refitted_the_same(early: bool) -> None:
    dense = random_model("bert")
    text = "pool-early,prune{sparsity=0.5},slice" if early else "prune{sparsity=0.5},slice"
    ctx = context(dense)
    pruned = Pipeline.parse(text).run(dense, ctx)
    refitted = Reconstruct().run(pruned, ctx)
    assert refitted.encoder == pruned.encoder
    assert refitted.encoder.pool_early == early
    assert distance(refitted, ctx) < 0.7 * distance(pruned, ctx)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_unpruned_model_stays(family: Family, task: Kind) -> None:
    dense = random_model(family, task=task)
    ctx = context(dense)
    after = Reconstruct().run(dense, ctx)
    (batch,) = ctx.workload
    assert worst(logits(after, batch), logits(dense, batch)) < 1e-3
    moved = {k for k, x in dense.weights.items() if worst(after.weights[k], x) > 1e-4}
    assert not moved


def test_the_given_models_stay_as_they_are() -> None:
    dense = random_model("bert")
    ctx = context(dense)
    pruned = slice_model(masked(dense, seed=2))
    before = {name: x.clone() for name, x in pruned.weights.items()}
    after = Reconstruct().run(pruned, ctx)
    assert all(torch.equal(x, before[name]) for name, x in pruned.weights.items())
    changed = {k.rpartition(".")[0] for k, x in before.items() if worst(after.weights[k], x)}
    maps = ("attention.output", "ffn.down", "head.dense")
    assert changed
    assert all(name.endswith(maps) for name in changed)


def ridge(x: Tensor, y: Tensor, weight: Tensor, damping: float) -> Tensor:
    """[M + 1, D] by `lstsq`: rows scaled by root weight, the ridge as rows of its own."""
    root = weight.double().sqrt()[:, None]
    a = torch.cat([x.double(), torch.ones(len(x), 1)], dim=1) * root
    mu = damping * (a * a).sum(0).mean()
    a_all = torch.cat([a, mu.sqrt() * torch.eye(a.shape[1], dtype=torch.float64)])
    y_all = torch.cat([y.double() * root, torch.zeros(a.shape[1], y.shape[1])])
    solution: Tensor = torch.linalg.lstsq(a_all, y_all).solution
    return solution


@pytest.mark.parametrize("task", KINDS)
def test_one_layer_equals_an_explicit_solution(task: Kind) -> None:
    """One FFN block: the new output map and head are those of torch.linalg.lstsq."""
    dense = random_model("bert", heads=(0,), ffn=(9,), hidden=8, task=task)
    keep = torch.tensor([1, 0, 1, 1, 0, 0, 1, 1, 0]).bool()
    small = slice_model(replace(dense, masks=replace(dense.masks, ffn=(keep,))))
    ctx = context(dense, rows=20)
    found = Reconstruct(ridge=0.05).run(small, ctx).weights

    (batch,) = batches(ctx.fit, 64)
    real = torch.as_tensor(batch.attention_mask).bool()
    pooled = task == "text-classification"
    weight = torch.full(real.shape, UNREAD_WEIGHT if pooled else 1.0)
    weight[:, 0] = 1.0
    ids, types = torch.as_tensor(batch.input_ids), torch.as_tensor(batch.token_type_ids)
    x = EncoderModule(dense).ops(ids, real.long(), types).embed()

    def block(w: Any) -> tuple[Tensor, Tensor]:
        up = F.linear(x, w["layers.0.ffn.up.weight"], w["layers.0.ffn.up.bias"])
        inner = F.gelu(up)
        down = F.linear(inner, w["layers.0.ffn.down.weight"], w["layers.0.ffn.down.bias"])
        return inner, x + down

    def norm(w: Any, y: Tensor) -> Tensor:
        scale, shift = w["layers.0.ffn.norm.weight"], w["layers.0.ffn.norm.bias"]
        return F.layer_norm(y, (8,), scale, shift, 1e-12)

    inner, y = block(small.weights)
    _, aim = block(dense.weights)
    step = ridge(inner[real], (aim - y)[real], weight[real], 0.05)
    expected = small.weights["layers.0.ffn.down.weight"] + step[:-1].T
    assert worst(found["layers.0.ffn.down.weight"], expected) < 1e-4
    expected = small.weights["layers.0.ffn.down.bias"] + step[-1]
    assert worst(found["layers.0.ffn.down.bias"], expected) < 1e-4

    head = "head.dense" if pooled else "head.output"
    now, goal = norm(small.weights, block(found)[1]), norm(dense.weights, aim)
    rows = torch.zeros_like(real)
    rows[:, 0] = True
    rows = rows if pooled else real
    old, bias = small.weights[f"{head}.weight"], small.weights[f"{head}.bias"]
    missing = F.linear(goal, old, bias) - F.linear(now, old, bias)
    step = ridge(now[rows], missing[rows], torch.ones(int(rows.sum())), 0.05)
    assert worst(found[f"{head}.weight"], old + step[:-1].T) < 1e-4
    assert worst(found[f"{head}.bias"], bias + step[-1]) < 1e-4


def test_padding_is_never_fitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows in wider batches give the same maps."""
    dense = random_model("bert", heads=(3, 2), ffn=(9, 9), hidden=12)
    small = slice_model(masked(dense, seed=3, gone=0.0))
    ctx = context(dense, rows=32)
    one = Reconstruct().run(small, ctx).weights
    monkeypatch.setattr(dense_stream, "BATCH", 3)
    two = Reconstruct().run(small, ctx).weights
    assert all(worst(one[k], two[k]) < 1e-3 for k in one)


def test_no_more_rows_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = random_model("bert", heads=(3, 2), ffn=(9, 9), hidden=12)
    small, ctx = slice_model(masked(dense, seed=3)), context(dense, rows=32)
    few = replace(ctx, fit=ctx.fit.take(range(8)))
    one, two = Reconstruct(rows=8).run(small, ctx), Reconstruct().run(small, few)
    assert all(torch.equal(x, two.weights[k]) for k, x in one.weights.items())
    first = Reconstruct().run(small, replace(ctx, fit=ctx.fit.take([0])))
    monkeypatch.setattr(reconstruct, "LIMIT_TOKENS", 1)
    least = Reconstruct().run(small, ctx)
    assert all(torch.equal(x, first.weights[k]) for k, x in least.weights.items())


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden", ["", ",prune-hidden{keep=37}"])
def test_before_the_cut_is_as_after_it(hidden: str, family: Family, task: Kind) -> None:
    dense = random_model(family, heads=(6, 4), ffn=(20, 16), task=task)
    ctx = context(dense)
    marked = Pipeline.parse(f"prune{{sparsity=0.4}}{hidden}").run(dense, ctx)
    one = slice_model(Reconstruct().run(marked, ctx))
    two = Reconstruct().run(slice_model(marked), ctx)
    assert one.encoder == two.encoder
    assert one.encoder.hidden == (37 if hidden else 48)
    assert all(worst(one.weights[k], x) < 1e-4 for k, x in two.weights.items())
    moved = [k for k, x in slice_model(marked).weights.items() if worst(x, one.weights[k])]
    assert len(moved) > 4


def test_dimensions_that_were_cut_at_two_times() -> None:
    """Which are left is said in terms of the dense model, however often some went."""
    dense = random_model("bert", heads=(6, 4), ffn=(20, 16))
    ctx = context(dense)
    first = slice_model(Pipeline.parse("prune-hidden{keep=42}").run(dense, ctx))
    second = Pipeline.parse("prune{sparsity=0.3},prune-hidden{keep=37}").run(first, ctx)
    one = slice_model(Reconstruct().run(second, ctx))
    two = Reconstruct().run(slice_model(second), ctx)
    assert all(worst(one.weights[k], x) < 1e-4 for k, x in two.weights.items())
    assert distance(one, ctx) < 0.7 * distance(slice_model(second), ctx)


def test_a_hidden_size_of_unknown_dimensions_is_refused() -> None:
    dense = random_model("bert")
    hidden = dense.masks.hidden.clone()
    hidden[3] = False
    narrow = slice_model(replace(dense, masks=replace(dense.masks, hidden=hidden)))
    Reconstruct().run(narrow, context(dense))
    with pytest.raises(PassError, match="hidden size 48, this one has 47") as caught:
        Reconstruct().run(replace(narrow, kept_hidden=None), context(dense))
    assert "put 'reconstruct' before 'slice'" in str(caught.value)


def test_a_fit_of_nothing_is_a_fault() -> None:
    with pytest.raises(ValueError, match=r"solve\(\) before add\(\)"):
        RidgeRegression().solve(0.01)
