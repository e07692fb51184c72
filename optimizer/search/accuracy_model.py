"""The accuracy model: predicts the loss of a candidate from its shape and from other trials.

    loss = c (1 - exp(-z / c)),    z = exp(w0 + w1 p + w2 m + w3 p m + sum over k of a_k s_k),
    s_k = logistic((p - p_k) / (b log 2)) logistic((m - m_k) / b),    w1, w2, w3, a_k >= 0,

with p = -log(remaining share of the multiply-adds of a pass), and m = log2(rows in a pass)
times the share of the layers that run on multiplexed rows. The predicted loss never falls with
p or m, and never exceeds c, the loss of guessing. The steps s_k lie half a factor of two
before each trial. They model losses that rise abruptly, as where too little attention is left
to tell rows apart: candidates at least as compressed as a failed trial are predicted to fail.

The weights w and a have normal priors and are fitted by non-linear least squares (maximum a
posteriori); log z is then normal with the Gauss-Newton covariance. A few trials are enough, as
the spread of a prediction shows its uncertainty. PruMUX (https://arxiv.org/abs/2305.14706)
interpolates a grid of trained models instead: `BilinearModel` is that baseline.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.sizes import Encoder

Floats = NDArray[np.float64]
PRIOR_MEAN = (-6.0, 1.2, 1.5, 0.0)
PRIOR_SD = (1.5, 0.5, 0.75, 0.3)
"""Normal prior of w: halving a model about doubles its loss, two rows a pass quadruple it."""
STEP_SD = 1.0
"""Prior standard deviation of a step's height a_k; a step may about triple a loss."""
STEP_BEFORE = 0.5
"""Distance of a step before its trial, in factors of two."""
STEP_WIDTH = 0.3
"""b above, the width of a step in factors of two."""
MISFIT = 0.3
"""Standard deviation of log(true loss) around this formula."""
LEAST_SD = 0.004
"""Standard deviation of a measured loss that randomness of training causes."""


@dataclass(frozen=True)
class Shape:
    """The features of a candidate that its loss is predicted from."""

    left: float
    """Share of the dense model's multiply-adds of one pass, without multiplexing; above 0."""
    slots: int = 1
    """Rows that share a pass."""
    mixed: float = 1.0
    """Share of the layers that run on multiplexed rows."""

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
        """Factors of w0..w3 above."""
        return 1.0, self.removed, self.mixing, self.removed * self.mixing


def shape_of(encoder: Encoder, macs: int, dense_macs: int) -> Shape:
    """The shape of a candidate.

    Args:
        encoder: its sizes.
        macs: its multiply-adds for one pass without multiplexing.
        dense_macs: the same of the given model.
    """
    mux = encoder.mux
    mixed = 0.0 if mux is None else 1 - mux.at / max(1, len(encoder.layers))
    return Shape(macs / dense_macs, encoder.slots, mixed)


@dataclass(frozen=True)
class LossPrediction:
    """The distribution of a loss: log z is normal."""

    log_mean: float
    log_sd: float
    ceiling: float = 1.0
    """c above."""

    @property
    def loss(self) -> float:
        """The median."""
        return float(_loss(np.asarray(self.log_mean), self.ceiling))

    def chance(self, limit: float) -> float:
        """Probability that the loss is at most `limit`."""
        if limit <= 0:
            return 0.0
        if limit >= self.ceiling:
            return 1.0
        z = -self.ceiling * math.log1p(-limit / self.ceiling)
        return NormalDist(self.log_mean, self.log_sd).cdf(math.log(z))


@dataclass(frozen=True, eq=False)
class LossModel:
    """Fitted weights with their covariance."""

    weights: Floats
    """Weights of `Shape.features`, then of the steps."""
    covariance: Floats
    places: Floats
    """Places of the steps, [steps, 2]: p_k in factors of two, m_k."""
    ceiling: float = 1.0

    def predict(self, shape: Shape) -> LossPrediction:
        """The distribution of the loss of a candidate of this shape."""
        x = _features([shape], self.places)[0]
        spread = math.sqrt(float(x @ self.covariance @ x) + MISFIT**2)
        return LossPrediction(float(self.weights @ x), spread, self.ceiling)


def fit(
    shapes: Sequence[Shape], losses: Sequence[float], rows: int, ceiling: float = 1.0
) -> LossModel:
    """Fit the model to trials; without trials, the result is the prior.

    Args:
        shapes: of the tried candidates.
        losses: their losses on the select rows; may be below 0.
        rows: number of select rows.
        ceiling: the loss of guessing, c above.
    """
    from scipy.optimize import least_squares

    places = np.unique(_places(shapes), axis=0) - STEP_BEFORE
    x = _features(shapes, places)
    y = np.asarray(losses, dtype=np.float64)
    # Variance of paired binary answers, with about as many changed answers as lost ones.
    sd = np.sqrt(np.maximum(np.abs(y), 0.01) / max(rows, 1) + LEAST_SD**2)
    mean = np.append(PRIOR_MEAN, np.zeros(len(places)))
    prior_sd = np.append(PRIOR_SD, np.full(len(places), STEP_SD))

    def expected(w: Floats) -> Floats:
        return _loss(x @ w, ceiling)

    def residuals(w: Floats) -> Floats:
        # A large loss is not known better than `MISFIT`.
        off = (y - expected(w)) / np.hypot(sd, MISFIT * np.maximum(y, 0.0))
        return np.concatenate([off, (w - mean) / prior_sd])

    low = np.append(-np.inf, np.zeros(len(mean) - 1))
    start = np.maximum(mean, low + 1e-3)
    found = least_squares(residuals, start, bounds=(low, np.inf))
    # Steps at their bound 0 are left out: they cannot make a prediction smaller.
    known = found.x > low + 1e-3
    known[: len(PRIOR_MEAN)] = True
    covariance = np.zeros((len(mean), len(mean)))
    jac = found.jac[:, known]
    covariance[np.ix_(known, known)] = np.linalg.inv(jac.T @ jac)
    return LossModel(found.x, covariance, places, ceiling)


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


FitLosses = Callable[[Sequence[Shape], Sequence[float]], LossModel]
"""`fit` with rows and ceiling bound."""


@dataclass(frozen=True, eq=False)
class BilinearModel:
    """Baseline, the accuracy model of PruMUX: bilinear in every cell of a measured grid."""

    slots: tuple[int, ...]
    sparsities: tuple[float, ...]
    losses: Floats
    """[slots, sparsities], all trained and measured."""

    def predict(self, slots: float, sparsity: float) -> float:
        """The loss at a point inside the grid.

        Raises:
            ValueError: it lies outside.
        """
        from scipy.interpolate import RegularGridInterpolator

        grid = RegularGridInterpolator((self.slots, self.sparsities), self.losses)
        return float(grid([[slots, sparsity]])[0])
