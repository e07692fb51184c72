"""The most importance under a cost limit, against trying everything."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.passes.pruning.allocate import (
    BranchOptions,
    allocate,
    keep_best,
    summed_importance,
)

CALM = settings(max_examples=150, deadline=None, derandomize=True)
GAINS = st.lists(st.floats(0.01, 10), min_size=1, max_size=5)


def offer(gains: list[float], costs: list[float]) -> BranchOptions:
    """Concave values: units in falling order of importance."""
    ordered = sorted(gains, reverse=True)
    total = [0.0]
    for gain in ordered:
        total.append(total[-1] + gain)
    return BranchOptions(tuple(range(len(total))), tuple(total), tuple(costs))


def exhaustive(offers: list[BranchOptions], limit: float) -> float:
    points = product(*(list(zip(o.values, o.costs, strict=True)) for o in offers))
    return max(
        (sum(v for v, _ in x) for x in points if sum(c for _, c in x) <= limit), default=0
    )


def total(offers: list[BranchOptions], counts: list[int]) -> tuple[float, float]:
    value = sum(o.values[o.counts.index(n)] for o, n in zip(offers, counts, strict=True))
    return value, sum(o.costs[o.counts.index(n)] for o, n in zip(offers, counts, strict=True))


@CALM
@given(
    st.lists(st.tuples(GAINS, st.integers(1, 4)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_linear_costs_are_within_one_unit_of_the_best(
    branches: list[tuple[list[float], int]], share: float
) -> None:
    offers = [offer(g, [float(n * price) for n in range(len(g) + 1)]) for g, price in branches]
    limit = share * sum(o.costs[-1] for o in offers)
    value, cost = total(offers, allocate(offers, limit))
    assert cost <= limit
    unit = max(max(g) for g, _ in branches)
    assert exhaustive(offers, limit) - unit <= value <= exhaustive(offers, limit) + 1e-9


@CALM
@given(
    st.lists(st.tuples(GAINS, st.randoms(use_true_random=False)), min_size=1, max_size=4),
    st.floats(0, 1),
)
def test_any_costs_are_within_one_branch_of_the_best(
    branches: list[tuple[list[float], object]], share: float
) -> None:
    offers = []
    for gains, random in branches:
        steps = [random.random() * random.choice((0, 1, 5)) for _ in gains]  # type: ignore[attr-defined]
        costs = [0.0]
        for step in steps:
            costs.append(costs[-1] + step)
        offers.append(offer(gains, costs))
    limit = share * sum(o.costs[-1] for o in offers)
    value, cost = total(offers, allocate(offers, limit))
    assert cost <= limit + 1e-9
    branch = max(o.values[-1] for o in offers)
    # Sums in another order differ in the last digit, and so may what fits the limit.
    low, high = (exhaustive(offers, limit + x) for x in (-1e-9, 1e-9))
    assert low - branch <= value + 1e-9
    assert value <= high + 1e-9


def test_a_block_that_does_not_pay_goes_whole() -> None:
    cheap = offer([1, 1, 1], [0, 1, 2, 3])
    dear = offer([1, 1, 1], [0, 10, 10.5, 11])
    assert allocate([dear, cheap], 3) == [0, 3]
    assert allocate([dear, cheap], 14) == [3, 3]


def test_what_is_left_is_spent_between_the_steps() -> None:
    """The hull jumps from nothing to all; half of it still fits."""
    block = offer([1, 1, 1, 1], [0, 4, 5, 6, 7])
    assert allocate([block], 7) == [4]
    assert allocate([block], 5.5) == [2]
    assert allocate([block], 3) == [0]


def test_a_limit_below_the_empty_model() -> None:
    with pytest.raises(ValueError, match=r"the limit 1 is below the cost 2 of an empty model"):
        allocate([BranchOptions((0, 1), (0.0, 1.0), (2.0, 3.0))], 1)


def test_values_and_masks_count_living_units_only() -> None:
    score, alive = torch.tensor([5.0, 1.0, 3.0, 2.0]), torch.tensor([0, 1, 1, 1]).bool()
    assert summed_importance(score, alive, (0, 1, 2, 3, 4)) == (0, 3, 5, 6, 6)
    (kept,) = keep_best([score], [2], [alive])
    assert kept.tolist() == [False, False, True, True]
    (kept,) = keep_best([score], [4], [alive])
    assert torch.equal(kept, alive)
