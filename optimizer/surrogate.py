"""What will a candidate lose? Predicted from its shape and from what others of its space lost.

    loss = c (1 - exp(-z / c)),    z = exp(w0 + w1 p + w2 m + w3 p m),    w1, w2, w3 >= 0,

with p = -log(share of the multiply-adds of a pass that is left) and m = log2(rows in one)
times the share of the layers that run on mixed rows. So the loss rises with each, never falls,
and no higher than c, what is lost by guessing.
The weights have a prior, wide enough for any data to move it, so a few trials are enough; what
is not known yet shows in the spread of a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from .ir import Encoder

Floats = NDArray[np.float64]
PRIOR_MEAN = (-6.0, 1.2, 1.5, 0.0)
PRIOR_SD = (1.5, 0.5, 0.75, 0.3)
"""Cutting half doubles the loss or so, mixing two rows makes it four times as large or so."""
MISFIT = 0.35
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
    covariance: Floats
    ceiling: float = 1.0

    def predict(self, shape: Shape) -> Belief:
        """What a candidate of this shape will lose."""
        x = np.asarray(shape.features)
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

    x = np.array([s.features for s in shapes]).reshape(-1, 4)
    y = np.asarray(losses, dtype=np.float64)
    # Of paired answers: about so many change as are lost, and a few more.
    sd = np.sqrt(np.maximum(np.abs(y), 0.01) / max(rows, 1) + LEAST_SD**2)
    mean, prior_sd = np.asarray(PRIOR_MEAN), np.asarray(PRIOR_SD)

    def expected(w: Floats) -> Floats:
        return _loss(x @ w, ceiling)

    def residuals(w: Floats) -> Floats:
        # A large loss is not known better than the form is.
        off = (y - expected(w)) / np.hypot(sd, MISFIT * np.maximum(y, 0.0))
        return np.concatenate([off, (w - mean) / prior_sd])

    low = np.array([-np.inf, 0.0, 0.0, 0.0])
    start = np.maximum(mean, low + 1e-3)
    found = least_squares(residuals, start, bounds=(low, np.inf))
    precision = found.jac.T @ found.jac
    return Surrogate(found.x, np.linalg.inv(precision), ceiling)


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
