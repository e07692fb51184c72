"""An exact confidence bound for the mean of bounded losses, by betting.

The method is from Waudby-Smith and Ramdas 2024, https://arxiv.org/abs/2010.09686, section 4.
"""

from __future__ import annotations

import math

import numpy as np

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.metrics import Floats

from .confidence_bounds import crossing

MOST_AT_STAKE = 0.9
"""The largest share of the capital that one bet can lose: c in the paper."""
ROUNDING = 1e-9
"""Tolerance for losses that rounding puts outside their range."""
ORDERS = 16
"""Number of fixed row orders. The capital depends on the order and is averaged over these."""


def betting_upper(
    losses: Floats, confidence: float, least: float = -1.0, effect: float = 1.0
) -> float:
    """Exact one-sided upper bound of the mean of independent losses in [a, 1], a = `least`.

    A gambler with a capital of 1 bets against the claim that the true mean loss is u. Let
    x_i = (1 - loss_i) / (1 - a), which is in [0, 1], and m = (1 - u) / (1 - a). The capital
    after n rows is

        K(u) = prod_i (1 + b_i (x_i - m))
        b_i = min(sqrt(2 log(1 / alpha) / (n v_i)), c / m)

    where v_i is a variance estimated from the rows before i, and c = `MOST_AT_STAKE`. If the
    true mean loss is u or more, the expected capital is at most 1. By Markov's inequality the
    capital then exceeds 1 / alpha with probability at most alpha. The bound is the smallest u
    with K(u) >= 1 / alpha. The bound needs no normality and is valid for every number of rows.
    The capital is averaged over `ORDERS` fixed orders of the rows. The average has the same
    expectation and depends less on the order of the rows.

    If all n losses are 0, the bound is about 3.4 / n at 95 %.

    Args:
        losses: the losses of rows that are independent draws, [N].
        confidence: one-sided, 1 - alpha.
        least: the smallest possible loss: -1 for the difference of two scores in [0, 1], 0 if
            the given model's score is always 1.
        effect: the number of rows that count as one independent row, see `design_effect`. The
            logarithm of the capital is divided by it.

    Raises:
        DataError: there are no losses, or one is outside [`least`, 1].
    """
    given = np.asarray(losses, dtype=np.float64)
    if not len(given):
        raise DataError("0 rows to certify on: give labelled rows, see --data")
    good = (given >= least - ROUNDING) & (given <= 1 + ROUNDING)
    if not good.all():
        wrong = int(np.flatnonzero(~good)[0])
        raise DataError(
            f"loss {wrong} is {given[wrong]}, bounded losses are in [{least:g}, 1]"
        )
    x = np.clip((1 - given) / (1 - least), 0, 1)
    shuffled = np.stack([np.random.default_rng(i).permutation(x) for i in range(ORDERS)])
    alpha = 1 - confidence
    bets = np.sqrt(2 * math.log(1 / alpha) / (len(x) * _variances(shuffled)))

    def above(u: float) -> bool:
        m = (1 - u) / (1 - least)
        if m <= 0:  # a mean loss cannot exceed 1
            return True
        logs = np.log1p(np.minimum(bets, MOST_AT_STAKE / m) * (shuffled - m)).sum(1)
        top = float(logs.max())
        log_mean = top + math.log(float(np.exp(logs - top).mean()))
        return log_mean >= effect * math.log(1 / alpha)

    return crossing(above, least, 1.0)


def _variances(x: Floats) -> Floats:
    """For each row the variance of the rows before it, [R, N]; 1/4 for the first row."""
    count = np.arange(1, x.shape[1] + 1)
    means = (0.5 + np.cumsum(x, axis=1)) / (count + 1)
    sums = 0.25 + np.cumsum((x - means) ** 2, axis=1)
    first = np.full((len(x), 1), 0.25)
    return np.concatenate([first, (sums / (count + 1))[:, :-1]], axis=1)
