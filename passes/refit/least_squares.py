"""Weighted ridge regression on activations that arrive in batches."""

from __future__ import annotations

import torch
from torch import Tensor


class RidgeRegression:
    """Sums the normal equations of `missing ~ dW inner + db`, then solves them in float64."""

    def __init__(self) -> None:
        self.gram: Tensor | None = None
        self.cross: Tensor | None = None
        self.power = 0.0

    def add(self, inner: Tensor, missing: Tensor, weight: Tensor) -> None:
        """Add positions to the fit.

        Args:
            inner: inputs, [B, T, M].
            missing: the outputs to fit, [B, T, D].
            weight: weights of positions, [B, T]. Weight 0 skips a position.
        """
        used = weight > 0
        root = weight[used].sqrt()[:, None]
        x = torch.cat([inner[used], torch.ones_like(root)], dim=1) * root
        y = missing[used] * root
        gram, cross = (x.T @ x).double(), (x.T @ y).double()
        self.gram = gram if self.gram is None else self.gram + gram
        self.cross = cross if self.cross is None else self.cross + cross
        self.power += float(y.double().square().sum())

    def solve(self, ridge: float, *, intercept: bool = True) -> tuple[Tensor, Tensor, float]:
        """Solve for the change of weight and bias.

        Args:
            ridge: damping, relative to the mean of the Gram diagonal. The mean leaves out
                inputs that are always 0.
            intercept: True if the map has a bias. Without a bias its change is 0.

        Returns:
            The change of the weight, [D, M]; the change of the bias, [D]; the share of the
            squared error that is left.
        """
        if self.gram is None or self.cross is None:
            raise ValueError("solve() before add(): there is nothing to fit")
        if not intercept:
            self.gram[-1], self.gram[:, -1], self.cross[-1] = 0, 0, 0
        size = len(self.gram)
        power = self.gram.diagonal()
        damping = ridge * power[power > 0].mean()
        damped = self.gram + damping * torch.eye(size).to(self.gram)
        factor = torch.linalg.cholesky(damped)
        solution = torch.cholesky_solve(self.cross, factor)
        explained = (
            2 * (solution * self.cross).sum() - (solution * (self.gram @ solution)).sum()
        )
        left = 1 - float(explained) / self.power if self.power > 0 else 0.0
        return solution[:-1].T.float(), solution[-1].float(), max(0.0, left)
