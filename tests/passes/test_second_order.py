"""One at a time with compensation: exact algebra, sees what two units share, keeps limits."""

from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prumux.optimizer.base.errors import SpecError
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model import forward
from prumux.optimizer.model.cost import count, unit_macs
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Branch, Encoder
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.prune import Prune
from prumux.passes.pruning import optimal_brain_surgeon as removal_module
from prumux.passes.pruning.importance import fisher
from prumux.passes.pruning.optimal_brain_surgeon import compensated, removal
from prumux.passes.pruning.second_order import _scale, second_order
from prumux.passes.refit import curvature as curvature_module
from prumux.passes.refit.curvature import SHARED_WEIGHT, curvature
from prumux.passes.slice import slice_model
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import logits, masked, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)
CALM = settings(max_examples=60, deadline=None, derandomize=True)


@pytest.fixture(autouse=True)
def full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws below are exact in float32; bfloat16 only makes scoring faster."""
    monkeypatch.setattr(curvature_module, "autocast", lambda device: nullcontext())


def context(model: Model, rows: int = 16, **fields: Any) -> Any:
    return make_context(model, random_batch(model, rows=rows), **fields)


def tiny(family: Family = "bert", **fields: Any) -> Model:
    return random_model(family, heads=(3, 2), ffn=(6, 5), hidden=12, **fields)


def by(sparsity: float, **fields: Any) -> Prune:
    return Prune(sparsity=sparsity, by="second-order", **fields)


def problem(seed: int, outputs: int, inputs: int, rows: int = 40) -> tuple[Tensor, Tensor]:
    """A map [D, M] and correlated inputs [R, M], float64."""
    random = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return draw(outputs, inputs), draw(rows, inputs) @ draw(inputs, inputs)


def refit(weight: Tensor, x: Tensor, kept: Tensor) -> tuple[Tensor, float]:
    """The best map on kept columns by `lstsq`, and its mean squared output error."""
    found = torch.zeros_like(weight)
    if bool(kept.any()):
        found[:, kept] = torch.linalg.lstsq(x[:, kept], x @ weight.T).solution.T
    return found, float((x @ (found - weight).T).square().sum()) / len(x)


@CALM
@given(
    seed=st.integers(0, 2**31),
    outputs=st.integers(1, 6),
    groups=st.integers(1, 9),
    size=st.integers(1, 3),
)
def test_losses_and_maps_are_those_of_an_exact_refit(
    seed: int, outputs: int, groups: int, size: int
) -> None:
    weight, x = problem(seed, outputs, groups * size)
    gram = x.T @ x / len(x)
    order, loss = removal(weight, gram, size)
    assert sorted(order.tolist()) == list(range(groups))
    assert loss[0] == 0
    kept = torch.ones(groups, dtype=torch.bool)
    whole = float(((weight @ gram) * weight).sum())
    for n, unit in enumerate(order.tolist()):
        errors = []
        for other in kept.nonzero()[:, 0].tolist():
            without = kept.clone()
            without[other] = False
            errors.append(refit(weight, x, without.repeat_interleave(size))[1])
        kept[unit] = False
        expected, error = refit(weight, x, kept.repeat_interleave(size))
        assert abs(float(loss[n + 1]) - error) < 1e-6 * whole
        assert error <= min(errors) + 1e-6 * whole
        if bool(kept.any()):
            found = compensated(weight, gram, kept.repeat_interleave(size))
            assert worst(found, expected) < 1e-5
            assert bool((found[:, ~kept.repeat_interleave(size)] == 0).all())
    assert abs(float(loss[-1]) - whole) < 1e-6 * whole


@pytest.mark.parametrize("block", [1, 3, 7, 64])
def test_blocks_of_columns_do_not_change_results(
    monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(removal_module, "BLOCK", block)
    weight, x = problem(5, 8, 40, rows=200)
    gram = x.T @ x / len(x)
    order, loss = removal(weight, gram)
    expected, steps = removal_module._groups(weight, torch.linalg.inv(gram), 1)
    assert order.tolist() == expected
    assert torch.allclose(loss[1:], torch.stack(steps).cumsum(0), rtol=1e-9)


def by_hand(model: Model, branch: Branch, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    """H, mean and G of a branch: row by row, class by class, the rest of the model rerun."""
    ctx, module = context(model, rows), EncoderModule(model)
    order = module.alive
    h: Any = 0.0
    mean: Any = 0.0
    g: Any = 0.0
    total = 0.0
    for i in range(rows):
        (batch,) = batches(ctx.fit.take([i]), 1)
        ids, mask = torch.as_tensor(batch.input_ids), torch.as_tensor(batch.attention_mask)
        types = torch.as_tensor(batch.token_type_ids)
        ops = module.ops(ids, mask, types)
        x = ops.embed()
        for _, x in forward.states(ops, x, order[: order.index(branch)]):  # noqa: B007, B020
            pass
        inner = forward.inner(ops, branch, x)
        y = ops.write(branch, inner, x).requires_grad_()
        after = forward.finish(ops, branch, y)
        later = order[order.index(branch) + 1 :]
        for _, after in forward.states(ops, after, later):  # noqa: B007, B020
            pass
        out = forward.answer(ops, after)[0]
        if isinstance(model.task, Regression):
            parts = [(1.0, out[0])]
        else:
            p = torch.softmax(out, 0)
            parts = [(float(q.detach()), q.log()) for q in p]
        weight = torch.zeros(ids.shape[1])
        for q, target in parts:
            (grad,) = torch.autograd.grad(target, y, retain_graph=True)
            weight += q * grad[0].square().sum(-1)
            g = g + q * grad[0].T @ grad[0] / rows
        weight = weight + SHARED_WEIGHT * weight.mean()
        h, mean = h + (inner[0].T * weight) @ inner[0], mean + weight @ inner[0]
        total += float(weight.sum())
    return h / total, mean / total, g


def regression() -> Model:
    return replace(tiny(labels=1), task=Regression(("score",)))


@pytest.mark.parametrize("model", [tiny(), tiny(labels=3), regression()])
def test_curvature_is_that_of_an_explicit_loop(model: Model) -> None:
    ctx = context(model, 7)
    found = curvature(model, batches(ctx.fit, 3), ctx)
    assert set(found) == set(EncoderModule(model).alive)
    for branch, at in found.items():
        h, mean, g = by_hand(model, branch, 7)
        assert torch.allclose(at.inputs, h, rtol=1e-3, atol=1e-5)
        assert torch.allclose(at.mean, mean, rtol=1e-3, atol=1e-5)
        # Rounding in G's root is relative to its largest entries.
        assert worst(at.root @ at.root, g) < 1e-3 * float(g.abs().max())
        assert float(g.abs().max()) > 0


def test_pool_early_has_the_same_output_curvature() -> None:
    """Only the first position is read, so its gradients are all there are."""
    model = tiny()
    early = replace(model, encoder=replace(model.encoder, pool_early=True))
    ctx = context(model)
    one = curvature(model, batches(ctx.fit, 4), ctx)
    two = curvature(early, batches(ctx.fit, 4), ctx)
    for branch, at in one.items():
        assert torch.allclose(at.root, two[branch].root, rtol=1e-3, atol=1e-5)
    first, last = Branch(0, "ffn"), Branch(1, "ffn")
    assert torch.allclose(one[first].inputs, two[first].inputs, rtol=1e-3, atol=1e-5)
    assert worst(one[last].inputs, two[last].inputs) > 1e-3


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_worth_rises_with_every_unit_from_nothing(family: Family, task: Kind) -> None:
    model = tiny(family, task=task)
    for values in second_order(model, context(model)).values(model.masks):
        assert values[0] == 0
        assert all(b >= a for a, b in pairwise(values))
        assert values[-1] > 0


def test_worth_is_in_the_currency_of_importance() -> None:
    """With inputs that are not correlated, removal costs what Fisher says, up to damping."""
    weight, x = problem(1, 4, 6)
    basis = torch.linalg.qr(x).Q
    gram = 3.0 * basis.T @ basis
    _, loss = removal(weight, gram)
    scale = _scale(weight, gram, 1, importance=5.0)
    assert abs(scale * float(loss[-1]) - 5.0) < 1e-9
    assert _scale(0 * weight, gram, 1, importance=5.0) == 0


def with_twins(model: Model, one: int, two: int) -> Model:
    """The model with FFN unit `two` of layer 0 a copy of unit `one`."""
    weights = dict(model.weights)
    for name in ("up.weight", "up.bias"):
        changed = weights[f"layers.0.ffn.{name}"].clone()
        changed[two] = changed[one]
        weights[f"layers.0.ffn.{name}"] = changed
    down = weights["layers.0.ffn.down.weight"].clone()
    down[:, two] = down[:, one]
    weights["layers.0.ffn.down.weight"] = down
    return replace(model, weights=weights)


def test_of_two_that_are_alike_one_goes_for_nothing() -> None:
    model = with_twins(tiny(), 1, 4)
    ctx = context(model, rows=64)
    score = fisher(model, ctx).ffn[0]
    assert abs(float(score[1] - score[4])) < 1e-5 * float(score[1])
    cheaper = int((score < score[1] * 0.999).sum())
    assert cheaper >= 1  # so Fisher would let others go before the twins
    removals = second_order(model, ctx)
    order = removals.found["layers.0.ffn.order"].tolist()
    loss = removals.found["layers.0.ffn.loss"]
    assert order[0] in (1, 4)
    assert loss[1] < 0.02 * loss[-1]
    other = 5 - order[0]
    at = order.index(other)
    assert at > 1  # it is dear now
    assert loss[at + 1] - loss[at] > 5 * loss[1]
    counts = [3, 2, 5, 5]
    small = removals.keep(model, counts)
    assert small.masks.ffn[0].tolist() == [i != order[0] for i in range(6)]
    (batch,) = ctx.workload
    assert worst(logits(small, batch), logits(model, batch)) < 0.05
    plain = replace(small, weights=model.weights)
    assert worst(logits(small, batch), logits(model, batch)) < 0.2 * worst(
        logits(plain, batch), logits(model, batch)
    )


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_masked_equals_sliced(family: Family, task: Kind, early: bool) -> None:
    model = random_model(family, task=task)
    if early:
        model = replace(model, encoder=replace(model.encoder, pool_early=model.encoder.pooled))
    ctx = context(model)
    before = {name: x.clone() for name, x in model.weights.items()}
    after = by(0.5).run(model, ctx)
    after.verify()
    assert all(torch.equal(x, before[name]) for name, x in model.weights.items())
    moved = {k for k, x in before.items() if not torch.equal(after.weights[k], x)}
    assert moved
    maps = ("attention.output.weight", "attention.output.bias", "down.weight", "down.bias")
    assert all(name.endswith(maps) for name in moved)
    batch = random_batch(model, seed=4)
    sliced = slice_model(after)
    sliced.verify()
    assert worst(logits(sliced, batch), logits(after, batch)) < 1e-4
    text = "prune{sparsity=0.5 by=second-order},slice"
    built = Pipeline.parse(text).run(model, ctx)
    assert worst(logits(built, batch), logits(sliced, batch)) == 0


@pytest.mark.parametrize("task", KINDS)
def test_compensation_brings_the_model_nearer(task: Kind) -> None:
    model = random_model("bert", task=task)
    ctx = context(model, rows=64)
    after = by(0.3).run(model, ctx)
    plain = replace(after, weights=model.weights)
    (batch,) = ctx.workload
    dense = logits(model, batch)
    near = float((logits(after, batch) - dense).square().mean())
    assert near < 0.7 * float((logits(plain, batch) - dense).square().mean())


def macs(encoder: Encoder, masks: Masks, length: int) -> int:
    return sum(
        int(h.sum()) * unit_macs(encoder, Branch(i, "attention"), length)
        + int(f.sum()) * unit_macs(encoder, Branch(i, "ffn"), length)
        for i, (h, f) in enumerate(zip(masks.heads, masks.ffn, strict=True))
    )


@pytest.mark.parametrize("early", [False, True])
def test_limits_are_met_within_one_unit(tmp_path: Path, early: bool) -> None:
    model = random_model("bert", pool_early=early)
    ctx = context(model, store=Store(tmp_path))
    dense, full = count(model.encoder, 8).encoder_parameters, Masks.full(model.encoder)
    for sparsity in (0.05, 0.5, 0.9):
        masks = by(sparsity).run(model, ctx).masks
        left = count(masks.sizes(model.encoder), 8).encoder_parameters
        limit = (1 - sparsity) * dense
        assert limit - 1000 < left <= limit
        masks = by(sparsity, of="macs").run(model, ctx).masks
        limit = (1 - sparsity) * macs(model.encoder, full, ctx.length)
        left = macs(model.encoder, masks, ctx.length)
        assert (
            limit - unit_macs(model.encoder, Branch(0, "attention"), ctx.length)
            < left
            <= limit
        )
    assert len(list(tmp_path.iterdir())) == 2  # Fisher and removals, once each


def test_stored_removals_are_the_same_and_tell_models_apart(tmp_path: Path) -> None:
    model = tiny()
    ctx = context(model, store=Store(tmp_path))
    fresh = second_order(model, context(model)).found
    for _ in range(2):
        found = second_order(model, ctx).found
        assert found.keys() == fresh.keys()
        assert all(torch.equal(x, fresh[k]) for k, x in found.items())
    others = [tiny(seed=1), masked(model, seed=1)]
    for i, other in enumerate(others):
        second_order(other, ctx)
        assert len(list(tmp_path.iterdir())) == 4 + 2 * i


def test_units_that_are_masked_count_as_gone() -> None:
    model = masked(tiny(), seed=3, gone=0.0)
    ctx = context(model)
    removals = second_order(model, ctx)
    for i, mask in enumerate(model.masks.ffn):
        gone, alive = int((~mask).sum()), int(mask.sum())
        order, loss = (removals.found[f"layers.{i}.ffn.{x}"] for x in ("order", "loss"))
        assert set(order[:gone].tolist()) == set((~mask).nonzero()[:, 0].tolist())
        assert sorted(order.tolist()) == list(range(len(mask)))
        assert bool((loss[: gone + 1] == 0).all())
        assert alive == 0 or float(loss[-1]) > 0
        values = removals.values(model.masks)[2 + i]
        assert len(set(values[alive:])) == 1
    kept = removals.keep(model, [int(m.sum()) for m in (*model.masks.heads, *model.masks.ffn)])
    assert all(kept.weights[k] is x for k, x in model.weights.items())
    after = by(0.6).run(model, ctx)
    pairs = zip(
        (*model.masks.heads, *model.masks.ffn), (*after.masks.heads, *after.masks.ffn),
        strict=True,
    )  # fmt: skip
    assert not any(bool((b & ~a).any()) for a, b in pairs)
    assert (
        worst(
            logits(slice_model(after), random_batch(model)), logits(after, random_batch(model))
        )
        < 1e-5
    )


def test_branches_that_are_gone_stay_gone() -> None:
    model = random_model("bert", heads=(3, 0, 2), ffn=(0, 6, 5), hidden=12)
    masks = replace(model.masks, heads=(torch.zeros(3).bool(), *model.masks.heads[1:]))
    model = replace(model, masks=masks)
    after = by(0.5).run(model, context(model))
    assert after.notes["heads"][:2] == [0, 0]
    assert after.notes["ffn"][0] == 0
    after.verify()


def test_a_branch_that_nobody_reads_is_worth_nothing() -> None:
    model = tiny()
    name = "layers.1.ffn.norm.weight"
    model = replace(model, weights={**model.weights, name: torch.zeros(12)})
    values = second_order(model, context(model)).values(model.masks)
    assert [max(x) for x in values] == [0.0] * 4
    after = by(0.5).run(model, context(model))
    assert all(bool(x.isfinite().all()) for x in after.weights.values())


def test_a_regression_is_pruned() -> None:
    model = regression()
    ctx = context(model)
    after = by(0.5).run(model, ctx)
    left = count(after.masks.sizes(model.encoder), 8).encoder_parameters
    assert left <= 0.5 * count(model.encoder, 8).encoder_parameters
    assert not after.masks.all_true


def test_nothing_to_do_is_the_same_object() -> None:
    model = tiny()
    assert by(0).run(model, context(model)) is model


def test_the_text_form() -> None:
    text = "prune{sparsity=0.6 of=macs by=second-order}"
    (pass_,) = Pipeline.parse(text).passes
    assert pass_ == by(0.6, of="macs")
    assert Pipeline.parse(str(pass_)).passes == (pass_,)
    assert "by" not in str(Prune(sparsity=0.6))
    with pytest.raises(SpecError, match="wants fisher or second-order, not magnitude"):
        Pipeline.parse("prune{sparsity=0.6 by=magnitude}")


def test_moments_that_rounding_left_indefinite_are_damped() -> None:
    x = torch.randn(6, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gram = x @ x.T - 1e-9 * torch.eye(6, dtype=torch.float64)
    weight = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    order, loss = removal(weight, gram)
    assert sorted(order.tolist()) == list(range(6))
    assert bool(loss.isfinite().all())
    kept = torch.tensor([True] * 3 + [False] * 3)
    assert bool(compensated(weight, gram, kept).isfinite().all())
