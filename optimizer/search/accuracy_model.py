"""The accuracy model: predicts the loss of a candidate from its shape and from other trials.

    loss = c (1 - exp(-z / c)),    z = exp(w0 + w1 p + w2 m + w3 p m + sum over k of a_k s_k),
    s_k = logistic((p - p_k) / (b log 2)) logistic((m - m_k) / b),    w1, w2, w3, a_k >= 0,

with p = -log(remaining share of the multiply-adds of a pass), and m = log2(rows in a pass)
times the share of the layers that run on multiplexed rows. The predicted loss never falls with
p or m, and never exceeds c, the loss of guessing. Each trial has one step s_k, half a unit of
log2 before it. Steps model losses that rise abruptly, for example if too few attention heads
remain to keep multiplexed rows separate. Candidates that are at least as compressed as a
failed trial are therefore predicted to fail.

The weights w and a have normal priors and are fitted by non-linear least squares (maximum a
posteriori). Then log z is normal with the Gauss-Newton covariance. A few trials are enough,
because the spread of a prediction shows its uncertainty. PruMUX
(https://arxiv.org/abs/2305.14706) interpolates a grid of trained models instead.
`BilinearModel` is this baseline.
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
"""Standard deviations of the normal prior of w, whose means are `PRIOR_MEAN`.

By these means, a loss about doubles with half the multiply-adds, and quadruples with two rows
a pass."""
STEP_SD = 1.0
"""Prior standard deviation of a step's height a_k. At this height a loss about triples."""
STEP_BEFORE = 0.5
"""Distance from a step to its trial, in factors of two."""
STEP_WIDTH = 0.3
"""Width b of a step, in factors of two."""
MISFIT = 0.3
"""Standard deviation of log(true loss) around the formula's prediction."""
LEAST_SD = 0.004
"""Standard deviation of measured losses from the randomness of training."""


@dataclass(frozen=True)
class Shape:
    """The features of a candidate from which its loss is predicted."""

    left: float
    """Share of the dense model's multiply-adds of one pass, without multiplexing; above 0."""
    slots: int = 1
    """Number of rows that share a forward pass."""
    mixed: float = 1.0
    """Share of the layers that run on multiplexed rows."""

    @property
    def removed(self) -> float:
        """The feature p of the module's formula."""
        return -math.log(min(max(self.left, 1e-6), 1.0))

    @property
    def mixing(self) -> float:
        """The feature m of the module's formula."""
        return math.log2(self.slots) * self.mixed

    @property
    def features(self) -> tuple[float, float, float, float]:
        """The factors of w0 to w3 in the module's formula."""
        return 1.0, self.removed, self.mixing, self.removed * self.mixing


def shape_of(encoder: Encoder, macs: int, dense_macs: int) -> Shape:
    """The shape of a candidate.

    Args:
        encoder: the candidate's sizes.
        macs: the candidate's multiply-adds for one pass, without multiplexing.
        dense_macs: the given model's multiply-adds for one pass.
    """
    mux = encoder.mux
    mixed = 0.0 if mux is None else 1 - mux.at / max(1, len(encoder.layers))
    return Shape(macs / dense_macs, encoder.slots, mixed)


@dataclass(frozen=True)
class LossPrediction:
    """The distribution of a loss. In the module's formula, log z is normal."""

    log_mean: float
    log_sd: float
    ceiling: float = 1.0
    """The loss c of guessing."""

    @property
    def loss(self) -> float:
        """The median loss."""
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
    """The fitted weights of the accuracy model, with their covariance."""

    weights: Floats
    """Weights of `Shape.features`, then of the steps."""
    covariance: Floats
    places: Floats
    """Positions of the steps, [steps, 2]: p_k in factors of two, and m_k."""
    ceiling: float = 1.0

    def predict(self, shape: Shape) -> LossPrediction:
        """The distribution of the loss of a candidate of this shape."""
        x = _features([shape], self.places)[0]
        spread = math.sqrt(float(x @ self.covariance @ x) + MISFIT**2)
        return LossPrediction(float(self.weights @ x), spread, self.ceiling)


def fit(
    shapes: Sequence[Shape], losses: Sequence[float], rows: int, ceiling: float = 1.0
) -> LossModel:
    """Fit the accuracy model to trials. Without trials, the result is the prior.

    Args:
        shapes: shapes of the tried candidates.
        losses: losses of the tried candidates on the select rows; may be below 0.
        rows: number of select rows.
        ceiling: the loss c of guessing.
    """
    from scipy.optimize import least_squares

    places = np.unique(_places(shapes), axis=0) - STEP_BEFORE
    x = _features(shapes, places)
    y = np.asarray(losses, dtype=np.float64)
    # The variance of paired binary answers, if about all changed answers are lost ones.
    sd = np.sqrt(np.maximum(np.abs(y), 0.01) / max(rows, 1) + LEAST_SD**2)
    mean = np.append(PRIOR_MEAN, np.zeros(len(places)))
    prior_sd = np.append(PRIOR_SD, np.full(len(places), STEP_SD))

    def expected(w: Floats) -> Floats:
        return _loss(x @ w, ceiling)

    def residuals(w: Floats) -> Floats:
        # The relative error of a large loss is at least `MISFIT`.
        off = (y - expected(w)) / np.hypot(sd, MISFIT * np.maximum(y, 0.0))
        return np.concatenate([off, (w - mean) / prior_sd])

    low = np.append(-np.inf, np.zeros(len(mean) - 1))
    start = np.maximum(mean, low + 1e-3)
    found = least_squares(residuals, start, bounds=(low, np.inf))
    # Steps at their bound 0 are left out, because they cannot make a prediction smaller.
    known = found.x > low + 1e-3
    known[: len(PRIOR_MEAN)] = True
    covariance = np.zeros((len(mean), len(mean)))
    jac = found.jac[:, known]
    covariance[np.ix_(known, known)] = np.linalg.inv(jac.T @ jac)
    return LossModel(found.x, covariance, places, ceiling)


def _places(shapes: Sequence[Shape]) -> Floats:
    """Positions of shapes, [shapes, 2]: p in factors of two, and m."""
    return np.array([(x.removed / math.log(2), x.mixing) for x in shapes]).reshape(-1, 2)


def _features(shapes: Sequence[Shape], places: Floats) -> Floats:
    """The factors of all weights, [shapes, 4 + steps]."""
    from scipy.special import expit

    line = np.array([x.features for x in shapes]).reshape(-1, 4)
    steps = expit((_places(shapes)[:, None] - places) / STEP_WIDTH).prod(axis=2)
    return np.hstack([line, steps])


def _loss(log_z: Floats, ceiling: float) -> Floats:
    """The loss of the module's formula, from log z."""
    found: Floats = -ceiling * np.expm1(-np.exp(np.minimum(log_z, 20.0)) / ceiling)
    return found


FitLosses = Callable[[Sequence[Shape], Sequence[float]], LossModel]
"""The function `fit` with fixed `rows` and `ceiling`."""


@dataclass(frozen=True, eq=False)
class BilinearModel:
    """The accuracy model of PruMUX, a baseline: bilinear in every cell of a measured grid."""

    slots: tuple[int, ...]
    sparsities: tuple[float, ...]
    losses: Floats
    """Losses of trained models, [slots, sparsities]."""

    def predict(self, slots: float, sparsity: float) -> float:
        """The loss at a point inside the grid.

        Raises:
            ValueError: the point lies outside the grid.
        """
        from scipy.interpolate import RegularGridInterpolator

        grid = RegularGridInterpolator((self.slots, self.sparsities), self.losses)
        return float(grid([[slots, sparsity]])[0])
