"""Hard-concrete gates: random factors in [0, 1], with positive probability of 0 and of 1.

With gamma = -0.1, zeta = 1.1, beta = 2/3, u ~ U(0, 1):

    s = sigmoid((ln u - ln(1 - u) + log_alpha) / beta)      z = clip(s (zeta - gamma) + gamma)
    P(z > t) = sigmoid(log_alpha - beta logit((t - gamma) / (zeta - gamma))),   0 <= t < 1

So the expected number of open gates has a gradient (Louizos et al.,
https://arxiv.org/abs/1712.01312).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3
LOW, HIGH = math.log(0.01), math.log(100)
"""Bounds of log_alpha. Its gradient vanishes outside of them."""
FLOOR = 1e-6
POINTS = 32


def probability_above(log_alpha: Tensor, t: float) -> Tensor:
    """P(z > t) for 0 <= t < 1, elementwise."""
    share = (t - GAMMA) / (ZETA - GAMMA)
    return torch.sigmoid(log_alpha - BETA * math.log(share / (1 - share)))


def open_probability(log_alpha: Tensor) -> Tensor:
    """P(z != 0), elementwise."""
    return probability_above(log_alpha, 0.0)


def mean(log_alpha: Tensor) -> Tensor:
    """E[z], the integral of P(z > t) over [0, 1] by Gauss-Legendre, elementwise."""
    at, weights = np.polynomial.legendre.leggauss(POINTS)
    parts = [
        float(w) / 2 * probability_above(log_alpha, (float(x) + 1) / 2)
        for x, w in zip(at, weights, strict=True)
    ]
    return torch.stack(parts).sum(0)


def open_value(log_alpha: Tensor) -> Tensor:
    """E[z | z != 0], in (0, 1): the factor of a kept unit."""
    return mean(log_alpha) / open_probability(log_alpha)


def sample(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Sample z from uniform draws u in (0, 1); shapes broadcast."""
    u = u.clamp(FLOOR, 1 - FLOOR)
    s = torch.sigmoid((torch.log(u) - torch.log1p(-u) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def binary_sample(log_alpha: Tensor, u: Tensor) -> Tensor:
    """Straight-through sample: 1 where z != 0, else 0, with the gradient of z."""
    z = sample(log_alpha, u)
    return (z > 0).to(z) + z - z.detach()


def keep_expected(log_alpha: Tensor) -> Tensor:
    """Mask of the round(sum P(z != 0)) gates with the highest log_alpha, bool [N]."""
    count = round(float(open_probability(log_alpha).sum()))
    kept = torch.zeros_like(log_alpha, dtype=torch.bool)
    kept[log_alpha.argsort(descending=True, stable=True)[:count]] = True
    return kept
