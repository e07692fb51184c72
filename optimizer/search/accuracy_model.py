"""What will a candidate lose? Predicted from its shape and from what others of its space lost.

    loss = c (1 - exp(-z / c)),    z = exp(w0 + w1 p + w2 m + w3 p m + sum over k of a_k s_k),
    s_k = logistic((p - p_k) / (b log 2)) logistic((m - m_k) / b),    w1, w2, w3, a_k >= 0,

with p = -log(share of the multiply-adds of a pass that is left) and m = log2(rows in one)
times the share of the layers that run on mixed rows. So the loss rises with each, never falls,
and no higher than c, what is lost by guessing. The steps s_k, one half a factor of two before
each trial, are for losses that rise at once, as where too little attention is left to tell
rows apart: who is cut and mixed as much as a trial that lost unexpectedly much will, too.
All weights have a prior, wide enough for any data to move it, so a few trials are enough; what
is not known yet shows in the spread of a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.ir import Encoder

Floats = NDArray[np.float64]
PRIOR_MEAN = (-6.0, 1.2, 1.5, 0.0)
PRIOR_SD = (1.5, 0.5, 0.75, 0.3)
"""Cutting half doubles the loss or so, mixing two rows makes it four times as large or so."""
STEP_SD = 1.0
"""Prior of a step's height, from 0: it may multiply a loss by three or so."""
STEP_BEFORE = 0.5
"""How far before its trial a step lies, in factors of two."""
STEP_WIDTH = 0.3
"""b above."""
MISFIT = 0.3
"""How far the logarithm of a true loss is from this form, as a standard deviation."""
LEAST_SD = 0.004
"""Of a measured loss: training is a matter of luck too."""


@dataclass(frozen=True)
class Shape:
    """What of a candidate the loss is predicted from."""

    left: float
    """Share of the dense model's multiply-adds of one pass, whatever is mixed; above 0."""
    slots: int = 1
    """Rows in one."""
    mixed: float = 1.0
    """Share of the layers that run on mixed rows."""

    @property
    def removed(self) -> float:
        """p above."""
        return -math.log(min(max(self.left, 1e-6), 1.0))

    @property
    def mixing(self) -> float:
        """m above."""
        return math.log2(self.slots) * self.mixed

    @property
    def features(self) -> tuple[float, float, float, float]:
        """What the weights are for."""
        return 1.0, self.removed, self.mixing, self.removed * self.mixing


def shape_of(encoder: Encoder, macs: int, dense_macs: int) -> Shape:
    """The shape of a candidate.

    Args:
        encoder: its sizes.
        macs: its multiply-adds for one pass without mixing.
        dense_macs: the same of the given model.
    """
    mux = encoder.mux
    mixed = 0.0 if mux is None else 1 - mux.at / max(1, len(encoder.layers))
    return Shape(macs / dense_macs, encoder.slots, mixed)


@dataclass(frozen=True)
class Belief:
    """What is thought of a loss: the logarithm of z is normal."""

    log_mean: float
    log_sd: float
    ceiling: float = 1.0
    """c above."""

    @property
    def loss(self) -> float:
        """The median."""
        return float(_loss(np.asarray(self.log_mean), self.ceiling))

    def chance(self, limit: float) -> float:
        """That the loss is at most this."""
        if limit <= 0:
            return 0.0
        if limit >= self.ceiling:
            return 1.0
        z = -self.ceiling * math.log1p(-limit / self.ceiling)
        return NormalDist(self.log_mean, self.log_sd).cdf(math.log(z))


@dataclass(frozen=True, eq=False)
class Surrogate:
    """Weights and what is not known of them."""

    weights: Floats
    """Of `Shape.features`, then of the steps."""
    covariance: Floats
    places: Floats
    """Of the steps, [steps, 2]: p_k in factors of two, m_k."""
    ceiling: float = 1.0

    def predict(self, shape: Shape) -> Belief:
        """What a candidate of this shape will lose."""
        x = _features([shape], self.places)[0]
        spread = math.sqrt(float(x @ self.covariance @ x) + MISFIT**2)
        return Belief(float(self.weights @ x), spread, self.ceiling)


def fit(
    shapes: Sequence[Shape], losses: Sequence[float], rows: int, ceiling: float = 1.0
) -> Surrogate:
    """Fit to trials; without any, the prior.

    Args:
        shapes: of the candidates that were tried.
        losses: what they lost on the select rows; may be below 0.
        rows: how many those are.
        ceiling: what is lost by guessing.
    """
    from scipy.optimize import least_squares

    places = np.unique(_places(shapes), axis=0) - STEP_BEFORE
    x = _features(shapes, places)
    y = np.asarray(losses, dtype=np.float64)
    # Of paired answers: about so many change as are lost, and a few more.
    sd = np.sqrt(np.maximum(np.abs(y), 0.01) / max(rows, 1) + LEAST_SD**2)
    mean = np.append(PRIOR_MEAN, np.zeros(len(places)))
    prior_sd = np.append(PRIOR_SD, np.full(len(places), STEP_SD))

    def expected(w: Floats) -> Floats:
        return _loss(x @ w, ceiling)

    def residuals(w: Floats) -> Floats:
        # A large loss is not known better than the form is.
        off = (y - expected(w)) / np.hypot(sd, MISFIT * np.maximum(y, 0.0))
        return np.concatenate([off, (w - mean) / prior_sd])

    low = np.append(-np.inf, np.zeros(len(mean) - 1))
    start = np.maximum(mean, low + 1e-3)
    found = least_squares(residuals, start, bounds=(low, np.inf))
    # A step that is not needed may still be there, but it would not make a loss smaller.
    known = found.x > low + 1e-3
    known[: len(PRIOR_MEAN)] = True
    covariance = np.zeros((len(mean), len(mean)))
    jac = found.jac[:, known]
    covariance[np.ix_(known, known)] = np.linalg.inv(jac.T @ jac)
    return Surrogate(found.x, covariance, places, ceiling)


def _places(shapes: Sequence[Shape]) -> Floats:
    """[shapes, 2]: p in factors of two, and m."""
    return np.array([(x.removed / math.log(2), x.mixing) for x in shapes]).reshape(-1, 2)


def _features(shapes: Sequence[Shape], places: Floats) -> Floats:
    """[shapes, 4 + steps]"""
    from scipy.special import expit

    line = np.array([x.features for x in shapes]).reshape(-1, 4)
    steps = expit((_places(shapes)[:, None] - places) / STEP_WIDTH).prod(axis=2)
    return np.hstack([line, steps])


def _loss(log_z: Floats, ceiling: float) -> Floats:
    """See the module."""
    found: Floats = -ceiling * np.expm1(-np.exp(np.minimum(log_z, 20.0)) / ceiling)
    return found


Fit = Callable[[Sequence[Shape], Sequence[float]], Surrogate]
"""`fit` where rows and ceiling are known."""


@dataclass(frozen=True, eq=False)
class Bilinear:
    """The baseline, as recalled of the paper: bilinear in every cell of a measured grid."""

    slots: tuple[int, ...]
    sparsities: tuple[float, ...]
    losses: Floats
    """[slots, sparsities], all of them trained and measured."""

    def predict(self, slots: float, sparsity: float) -> float:
        """The loss at a point inside the grid.

        Raises:
            ValueError: it lies outside.
        """
        from scipy.interpolate import RegularGridInterpolator

        grid = RegularGridInterpolator((self.slots, self.sparsities), self.losses)
        return float(grid([[slots, sparsity]])[0])
