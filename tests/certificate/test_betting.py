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
    with pytest.raises(DataError, match=r"loss 0 is -0.5, .* in \[0, 1\]"):
        betting_upper(np.array([-0.5, 0.1]), 0.95, least=0.0)


# Losses with another least value -----------------------------------------------------------


def hits(random: np.random.Generator, rows: int) -> Floats:
    """Losses of recall: most queries keep their document, some lose or win one."""
    return random.choice([-1.0, 0.0, 1.0], size=rows, p=[0.03, 0.89, 0.08])


def shares(random: np.random.Generator, rows: int) -> Floats:
    """Losses of agreement: some of ten neighbours of most texts."""
    return random.binomial(10, 0.08, size=rows) / 10


def rare(random: np.random.Generator, rows: int) -> Floats:
    """A loss that most samples of 100 rows do not show."""
    return (random.random(rows) < 0.01).astype(float)


@pytest.mark.parametrize(
    ("draw", "mean", "least"), [(hits, 0.05, -1.0), (shares, 0.08, 0.0), (rare, 0.01, 0.0)]
)
@pytest.mark.parametrize("rows", [20, 100, 600])
def test_the_true_loss_is_below_the_bound(
    draw: Callable[[np.random.Generator, int], Floats], mean: float, least: float, rows: int
) -> None:
    random = np.random.default_rng(rows)
    below = sum(betting_upper(draw(random, rows), 0.95, least) >= mean for _ in range(SAMPLES))
    # 95 % of 400 are 380; 365 is three standard deviations below.
    assert below >= 365


def test_it_is_close_to_the_mean_of_many_rows() -> None:
    losses = shares(np.random.default_rng(0), 2000)
    bound = betting_upper(losses, 0.95, least=0.0)
    assert losses.mean() < bound < losses.mean() + 0.006
    # Hoeffding's inequality gives sqrt(log(20) / (2 n)).
    assert bound - losses.mean() < 0.3 * np.sqrt(np.log(20) / 4000)


def test_rows_without_a_loss_prove_only_so_much() -> None:
    bounds = [betting_upper(np.zeros(n), 0.95, least=0.0) for n in (50, 500, 5000)]
    assert bounds == sorted(bounds, reverse=True)
    for n, bound in zip((50, 500, 5000), bounds, strict=True):
        assert 3 / n < bound < 4.5 / n  # Clopper-Pearson: 3 / n


def test_a_higher_confidence_is_a_higher_bound() -> None:
    losses = hits(np.random.default_rng(3), 300)
    low, high = (betting_upper(losses, x) for x in (0.9, 0.99))
    assert losses.mean() < low < high <= 1.0


def test_the_worst_losses_prove_nothing() -> None:
    assert betting_upper(np.ones(200), 0.95) == pytest.approx(1.0)
    assert betting_upper(np.array([0.0]), 0.95, least=0.0) > 0.5
    assert betting_upper(-np.ones(500), 0.95) < -0.95
