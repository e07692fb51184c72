"""The bound by betting keeps its level at every number of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.certificate.betting import betting_upper
from prumux.optimizer.certificate.confidence_bounds import clopper_pearson_upper
from prumux.optimizer.tasks.metrics import Floats

LOSSES = st.lists(st.floats(-1, 1), min_size=1, max_size=40).map(np.array)
SAMPLES = 400
MOST_MISSES = 32
"""Of 400 bounds at 95 %: a right one misses more often in 0.7 % of simulations."""


def two_point(random: np.random.Generator, rows: int) -> Floats:
    """Rows lose all with 3 %, else nothing."""
    return (random.random(rows) < 0.03).astype(float)


def mirrored(random: np.random.Generator, rows: int) -> Floats:
    """Rows win a little nearly always, and lose all with 5 %."""
    return np.where(random.random(rows) < 0.05, 1.0, -0.05)


def changes(random: np.random.Generator, rows: int) -> Floats:
    """Most rows keep their score, some change it in both directions."""
    return np.where(random.random(rows) < 0.3, random.uniform(-0.4, 0.5, rows), 0.0)


def extremes(random: np.random.Generator, rows: int) -> Floats:
    """Every row wins or loses all."""
    return random.choice([-1.0, 1.0], rows)


TRUE: Mapping[Callable[[np.random.Generator, int], Floats], float] = {
    two_point: 0.03,
    mirrored: 0.05 - 0.05 * 0.95,
    changes: 0.3 * 0.05,
    extremes: 0.0,
}


@pytest.mark.parametrize("rows", [8, 60, 300])
@pytest.mark.parametrize("draw", TRUE, ids=lambda x: x.__name__)
def test_it_misses_the_true_mean_in_at_most_5_percent_of_samples(
    draw: Callable[[np.random.Generator, int], Floats], rows: int
) -> None:
    random = np.random.default_rng(rows)
    bounds = [betting_upper(draw(random, rows), 0.95) for _ in range(SAMPLES)]
    assert sum(x < TRUE[draw] for x in bounds) <= MOST_MISSES


def test_a_normal_bound_would_miss_far_more() -> None:
    """The simulation sees a bound that is too low."""
    random, misses = np.random.default_rng(0), 0
    for _ in range(SAMPLES):
        drawn = two_point(random, 60)
        misses += drawn.mean() + 1.645 * drawn.std() / 60**0.5 < 0.03
    assert misses > 2 * MOST_MISSES


@settings(max_examples=60)
@given(losses=LOSSES, confidence=st.sampled_from([0.8, 0.95, 0.99]))
def test_it_lies_between_the_observed_loss_and_1(losses: Floats, confidence: float) -> None:
    found = betting_upper(losses, confidence)
    assert losses.mean() - 1e-9 <= found <= 1


@settings(max_examples=60)
@given(losses=LOSSES)
def test_more_confidence_costs_more(losses: Floats) -> None:
    found = [betting_upper(losses, x) for x in (0.8, 0.9, 0.95, 0.99)]
    assert found == sorted(found)


@settings(max_examples=60)
@given(losses=LOSSES, times=st.sampled_from([4, 16]))
def test_more_rows_of_the_same_kind_prove_more(losses: Floats, times: int) -> None:
    assert betting_upper(np.tile(losses, times), 0.95) <= betting_upper(losses, 0.95) + 0.01


@pytest.mark.parametrize("rows", [10, 100, 1000, 10_000])
def test_rows_without_a_loss_prove_about_the_rule_of_three(rows: int) -> None:
    found = betting_upper(np.zeros(rows), 0.95)
    assert 2.9 / rows < found < (3.7 if rows >= 100 else 4.5) / rows


def test_it_is_near_the_exact_bound_of_a_share() -> None:
    losses = (np.arange(1000) < 20).astype(float)
    exact = clopper_pearson_upper(1000, 20)
    assert exact < betting_upper(losses, 0.95) < exact + 0.01


def test_a_small_variance_is_used() -> None:
    """Hoeffding's bound of 2,000 rows is 5.5 points above the mean."""
    losses = changes(np.random.default_rng(0), 2000)
    assert betting_upper(losses, 0.95) - losses.mean() < 0.011


def test_bad_losses_are_refused() -> None:
    with pytest.raises(DataError, match="0 rows"):
        betting_upper(np.zeros(0), 0.95)
    for wrong in (1.5, -1.01, float("nan")):
        with pytest.raises(DataError, match=r"loss 2 is .* in \[-1, 1\]"):
            betting_upper(np.array([0.0, 0.1, wrong]), 0.95)
