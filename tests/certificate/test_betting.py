"""The bound by betting: exact coverage, and tight enough to be of use."""

import numpy as np
import pytest
from numpy.typing import NDArray

from prumux.optimizer.certificate.betting import mean_loss_upper

TRIALS = 400


def hits(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Losses of recall: most queries keep their document, some lose or win one."""
    return random.choice([-1.0, 0.0, 1.0], size=rows, p=[0.03, 0.89, 0.08])


def shares(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Losses of agreement: some of ten neighbours of most texts."""
    return random.binomial(10, 0.08, size=rows) / 10


def rare(random: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """A loss that most samples of 100 rows do not show."""
    return (random.random(rows) < 0.01).astype(float)


@pytest.mark.parametrize(
    ("draw", "mean", "least"), [(hits, 0.05, -1.0), (shares, 0.08, 0.0), (rare, 0.01, 0.0)]
)
@pytest.mark.parametrize("rows", [20, 100, 600])
def test_the_true_loss_is_below_the_bound(draw, mean, least, rows) -> None:  # type: ignore[no-untyped-def]
    random = np.random.default_rng(rows)
    below = sum(
        mean_loss_upper(draw(random, rows), least, seed=i) >= mean for i in range(TRIALS)
    )
    # 95 % of 400 are 380; 365 is three standard deviations below.
    assert below >= 365


def test_it_is_close_to_the_mean_of_many_rows() -> None:
    losses = shares(np.random.default_rng(0), 2000)
    bound = mean_loss_upper(losses, least=0.0)
    assert losses.mean() < bound < losses.mean() + 0.006
    # Hoeffding's inequality gives sqrt(log(20) / (2 n)).
    assert bound - losses.mean() < 0.3 * np.sqrt(np.log(20) / 4000)


def test_rows_without_a_loss_prove_only_so_much() -> None:
    bounds = [mean_loss_upper(np.zeros(n), least=0.0) for n in (50, 500, 5000)]
    assert bounds == sorted(bounds, reverse=True)
    for n, bound in zip((50, 500, 5000), bounds, strict=True):
        assert 3 / n < bound < 4.5 / n  # Clopper-Pearson: 3 / n


def test_a_higher_confidence_is_a_higher_bound() -> None:
    losses = hits(np.random.default_rng(3), 300)
    low, high = (mean_loss_upper(losses, -1.0, confidence=x) for x in (0.9, 0.99))
    assert losses.mean() < low < high <= 1.0


def test_the_worst_losses_prove_nothing() -> None:
    assert mean_loss_upper(np.ones(200), least=-1.0) == pytest.approx(1.0)
    assert mean_loss_upper(np.array([0.0]), least=0.0) > 0.5
    assert mean_loss_upper(-np.ones(500), least=-1.0) < -0.95
