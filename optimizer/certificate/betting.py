"""An exact upper bound of a mean loss by betting.

Waudby-Smith and Ramdas 2024, https://arxiv.org/abs/2010.09686. A gambler starts with capital 1
and bets on each row that the mean of x, a score in [0, 1], is above m:

    K_t(m) = prod_{i <= t} (1 + lambda_i (x_i - m)),    0 <= lambda_i <= c / m,  c < 1

lambda_i depends on rows before i only. If the true mean is at most m, no strategy is expected
to gain, and by Ville's inequality K ever reaches 1 / alpha with probability at most alpha.
Every m at which it does is rejected; K falls as m grows, so the rest is an interval. This
holds at every number of rows, for any distribution, without normality. The bets only decide
how tight the bound is. They are the paper's for a fixed number of rows (section 4): large
where the variance so far is small.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from .confidence_bounds import crossing

MOST = 0.9
"""c: a single row takes at most this share of the capital."""


def mean_loss_upper(
    losses: NDArray[np.floating], least: float, confidence: float = 0.95, seed: int = 0
) -> float:
    """One-sided upper bound of the mean of independent losses.

    Args:
        losses: in [least, 1], [N].
        least: the smallest loss that is possible: -1 for the difference of two scores in
            [0, 1], 0 where the dense model's score is 1.
        confidence: one-sided.
        seed: draws the order in which the rows are bet on.

    Example:
        >>> round(mean_loss_upper(np.zeros(300), least=0.0), 4)
        0.0117
    """
    x = (1.0 - np.asarray(losses, dtype=np.float64)) / (1.0 - least)
    x = np.clip(x[np.random.default_rng(seed).permutation(len(x))], 0.0, 1.0)
    wanted = math.log(1 / (1 - confidence))
    bets = _bets(x, wanted)

    def rejected(loss: float) -> bool:
        m = (1.0 - loss) / (1.0 - least)
        bet = np.minimum(bets, MOST / m) if m > 0 else bets
        return bool(np.cumsum(np.log1p(bet * (x - m))).max() >= wanted)

    return crossing(rejected, least, 1.0)


def _bets(x: NDArray[np.float64], wanted: float) -> NDArray[np.float64]:
    """The bet on each row from the rows before it, not yet limited by MOST / m."""
    n = len(x)
    count = np.arange(1, n + 1)
    mean = (0.5 + np.cumsum(x)) / (count + 1)
    variance = (0.25 + np.cumsum((x - mean) ** 2)) / (count + 1)
    before = np.concatenate([[0.25], variance[:-1]])
    return np.asarray(np.sqrt(2 * wanted / (n * before)))
