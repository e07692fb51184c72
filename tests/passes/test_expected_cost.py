"""The expected cost of gates, and which are kept under a limit."""

from typing import Any

import pytest
import torch

from prumux.optimizer.model.cost import count, unit_weights
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Branch
from prumux.optimizer.pipeline.context import Context
from prumux.passes.gates.expected_cost import CostBudget, CountedBudget, TimedBudget
from prumux.passes.gates.gates import OpenProbabilities
from prumux.passes.gates.hard_concrete import HIGH
from prumux.passes.gates.masks import START, final_masks, initial_gates
from prumux.passes.pruning.importance import fisher
from tests.helpers.factory import make_context, random_batch, random_model
from tests.helpers.gating import small, some_gates, table
from tests.helpers.masking import random_masks


def context(model: Model, **fields: Any) -> Context:
    return make_context(model, random_batch(model, rows=16), **fields)


def binary(masks: Masks) -> OpenProbabilities:
    """OpenProbabilities of 0 and 1; blocks are open, as units alone say what lives."""
    units = tuple(m.double() for m in (*masks.heads, *masks.ffn))
    ones = torch.ones(len(units), dtype=torch.float64)
    return OpenProbabilities(units, ones, masks.hidden.double())


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("of", ["weights", "macs"])
def test_expected_cost_of_binary_chances_is_the_counted_one(of: Any, early: bool) -> None:
    model = small(pool_early=early)
    budget = CountedBudget(model.encoder, model.encoder, 0.5, of, 7)
    for seed in range(20):
        masks = random_masks(model.encoder, seed, gone=0.4)
        sizes = masks.sizes(model.encoder)
        assert float(budget.expected(binary(masks))) == pytest.approx(budget.cost(sizes))
        if of == "weights":
            assert budget.cost(sizes) == count(sizes, 7).encoder_parameters


@pytest.mark.parametrize("early", [False, True])
def test_expected_time_of_binary_chances_is_the_tables(early: bool) -> None:
    model = small(pool_early=early)
    budget = TimedBudget(table(early), 10.0, early)
    for seed in range(20):
        masks = random_masks(model.encoder, seed, gone=0.4, hidden=False)
        expected = table(early).predict_ms(masks.sizes(model.encoder))
        assert float(budget.expected(binary(masks))) == pytest.approx(expected)


@pytest.mark.parametrize("of", ["weights", "macs", "time"])
def test_expected_cost_is_the_mean_over_independent_gates(of: Any) -> None:
    model = random_model(heads=(2, 2), ffn=(2, 1), hidden=8, pool_early=True)
    e = model.encoder
    random = torch.Generator().manual_seed(0)
    blocks = torch.rand(4, generator=random, dtype=torch.float64)
    if of == "time":
        # Curves are taken at expected counts, so only blocks are random here.
        units = tuple(torch.ones(n, dtype=torch.float64) for n in (2, 2, 2, 1))
        budget: CostBudget = TimedBudget(table(), 10.0, early=True)
    else:
        units = tuple(
            torch.rand(n, generator=random, dtype=torch.float64) for n in (2, 2, 2, 1)
        )
        budget = CountedBudget(e, e, 0.5, of, 7)
    hidden = torch.ones(8, dtype=torch.float64)
    p = torch.cat([blocks, *units])
    total = 0.0
    for bits in range(2 ** len(p)):
        on = torch.tensor([bits >> i & 1 for i in range(len(p))], dtype=torch.bool)
        probability = float(torch.where(on, p, 1 - p).prod())
        parts = torch.split(on[4:], [2, 2, 2, 1])
        kept = tuple(part & bool(block) for part, block in zip(parts, on[:4], strict=True))
        if probability:
            sizes = Masks(kept[:2], kept[2:], hidden.bool()).sizes(e)
            total += probability * budget.cost(sizes)
    assert float(budget.expected(OpenProbabilities(units, blocks, hidden))) == pytest.approx(
        total
    )


def test_expected_time_has_the_slope_of_the_curve() -> None:
    units = torch.full((16,), 12 / 16, requires_grad=True)
    others = (*(torch.ones(4) for _ in range(3)), *(torch.ones(16) for _ in range(2)))
    budget = TimedBudget(table(False), 10.0, early=False)
    p = OpenProbabilities((*others, units), torch.ones(6), torch.ones(16))
    (slope,) = torch.autograd.grad(budget.expected(p), units)
    torch.testing.assert_close(slope, torch.full((16,), 5 / 8))


@pytest.mark.parametrize("of", ["weights", "macs"])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.5, 0.8])
def test_what_is_decided_spends_the_limit_within_one_unit(of: Any, share: float) -> None:
    model = random_model(pool_early=True)
    e = model.encoder
    budget = CountedBudget(e, e, share, of, 9)
    for seed in range(8):
        masks = final_masks(some_gates(e, seed), budget, e)
        masks.verify(e)
        spent = budget.cost(masks.sizes(e))
        assert spent <= budget.limit
        if of == "weights":
            assert (
                spent > budget.limit - unit_weights(e, Branch(0, "attention")) - 3 * e.hidden
            )
        for mask in (*masks.heads, *masks.ffn):  # one more unit of any branch is too much
            if not bool(mask.all()):
                added = int(mask.int().argmin())
                mask[added] = True
                assert budget.cost(masks.sizes(e)) > budget.limit
                mask[added] = False


def test_what_is_decided_without_correction_is_the_expected_number_of_each_group() -> None:
    e = random_model().encoder
    gates = some_gates(e, 0)
    gates.blocks.data.fill_(HIGH)  # type: ignore[union-attr]
    want = [round(float(p.detach().sum())) for p in gates.probabilities().units]
    kept = Masks.full(e)
    sizes = [*kept.heads, *kept.ffn]
    for mask, count_ in zip(sizes, want, strict=True):
        mask[count_:] = False
    exact = CountedBudget(e, e, 1.0, "weights", 9)
    exact.limit = exact.cost(kept.sizes(e))
    masks = final_masks(gates, exact, e)
    assert [int(m.sum()) for m in (*masks.heads, *masks.ffn)] == want


def test_gates_start_open_in_the_order_of_importance_over_cost() -> None:
    model = small()
    ctx = context(model)
    budget = CountedBudget(model.encoder, model.encoder, 0.4, "weights", 8)
    scores = fisher(model, ctx)
    gates = initial_gates(model.encoder, budget, scores, blocks=True, hidden=False)
    assert gates.units.min().item() == pytest.approx(START)
    assert gates.units.max().item() == pytest.approx(HIGH)
    price = torch.tensor(
        [unit_weights(model.encoder, Branch(0, "attention"))] * 12
        + [unit_weights(model.encoder, Branch(0, "ffn"))] * 48
    )
    worth = torch.cat([*scores.heads, *scores.ffn]) / price
    # Blocks' own weights are shared by all units alike, so the order may differ a little.
    both = torch.corrcoef(
        torch.stack([worth.argsort().argsort().float(), gates.units.detach()])
    )
    assert float(both[0, 1]) > 0.97
    assert gates.hidden is None
