"""Optimal Brain Surgeon: remove inputs of a linear map, the cheapest first.

The method is Optimal Brain Compression (Frantar and Alistarh,
https://arxiv.org/abs/2208.11580). Let y = W x with second moments H = E[x x^T]. The columns S
of W are removed, and all other columns move by the best step dW. This costs rho_S, where H^-1
is over the columns that were left before:

    rho_S = tr( W_S ([H^-1]_SS)^-1 W_S^T ) = min over dW, W_S + dW_S = 0, of tr(dW H dW^T)
    dW    = -W_S ([H^-1]_SS)^-1 [H^-1]_S,:

Then H^-1 <- H^-1 - [H^-1]_:,S ([H^-1]_SS)^-1 [H^-1]_S,:. One group of columns is removed at a
time, the cheapest first. If two groups are equal, the removal of one makes the other group
expensive.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 64
"""Columns removed between two updates of the matrices. The number does not change results."""


def removal(weight: Tensor, gram: Tensor, size: int = 1) -> tuple[Tensor, Tensor]:
    """Remove groups of columns, the cheapest first; return the order and the loss.

    Args:
        weight: the map [D, N * size]; scale its rows to weigh outputs.
        gram: H, [N * size, N * size], positive definite up to rounding.
        size: columns of a group; groups are contiguous.

    Returns:
        order: int64 [N], the first removed group first.
        loss: float64 [N + 1], the summed rho of the first n removals, for n = 0 .. N.
    """
    weight, gram = weight.double(), gram.double()
    inverse = torch.cholesky_inverse(_factor(gram))
    order, steps = (_columns if size == 1 else _groups)(weight, inverse, size)
    loss = torch.cat([weight.new_zeros(1), torch.stack(steps).cumsum(0)] if steps else [])
    return torch.tensor(order, dtype=torch.int64), loss


def compensated(weight: Tensor, gram: Tensor, kept: Tensor) -> Tensor:
    """The map [D, M] with compensation: columns outside of `kept` (bool [M]) are 0.

    Kept columns are W_K + W_R H_RK H_KK^-1, the least-squares refit of W x. This is the sum of
    the steps dW of all removals.
    """
    h, w = gram.double(), weight.double()
    step = torch.cholesky_solve(h[kept][:, ~kept] @ w[:, ~kept].T, _factor(h[kept][:, kept])).T
    found = torch.zeros_like(weight)
    found[:, kept] = (w[:, kept] + step).to(weight)
    return found


def _factor(h: Tensor) -> Tensor:
    """Cholesky factor of `h`. `h` is damped if rounding has made it indefinite."""
    more, eye = 0.0, torch.eye(len(h), dtype=h.dtype)
    while True:
        found: Tensor
        found, failed = torch.linalg.cholesky_ex(h + more * eye)
        if not failed:
            return found
        more = max(10 * more, 1e-6 * float(h.diagonal().abs().mean()))


def _groups(weight: Tensor, inverse: Tensor, size: int) -> tuple[list[int], list[Tensor]]:
    """Remove groups one at a time, by the equations in the docstring of this module."""
    left = list(range(weight.shape[1] // size))
    order: list[int] = []
    steps: list[Tensor] = []
    while left:
        n = len(left)
        blocks = inverse.view(n, size, n, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        columns = weight.T.reshape(n, size, -1)
        scaled = torch.linalg.solve(blocks, columns)  # [n, size, D]: [H^-1]_SS^-1 W_S^T
        rho = (columns * scaled).sum((1, 2))
        at = int(rho.argmin())
        order.append(left.pop(at))
        steps.append(rho[at].clamp_min(0))
        gone = torch.arange(len(inverse)) // size == at
        across = inverse[gone]
        weight = (weight - scaled[at].T @ across)[:, ~gone]
        inverse = inverse - across.T @ torch.linalg.solve(blocks[at], across)
        inverse = inverse[~gone][:, ~gone]
    return order, steps


def _columns(weight: Tensor, inverse: Tensor, size: int) -> tuple[list[int], list[Tensor]]:
    """Remove single columns one at a time, by the same equations, with updates in blocks.

    A removal updates only the column norms of W and the diagonal of H^-1. It adds a row to
    U [k, M] and to V [k, D]. At the end of a block, V^T U is subtracted from W, and U^T U from
    H^-1.
    """
    del size
    left = torch.arange(weight.shape[1])
    order: list[int] = []
    steps: list[Tensor] = []
    while len(left):
        norms, diagonal = weight.square().sum(0), inverse.diagonal().clone()
        count = min(BLOCK, len(left))
        u, v = weight.new_zeros(count, len(left)), weight.new_zeros(count, len(weight))
        alive = torch.ones(len(left), dtype=torch.bool)
        for k in range(count):
            rho = torch.where(alive, norms.clamp_min(0) / diagonal, torch.inf)
            at = int(rho.argmin())
            row = inverse[at] - u[:k, at] @ u[:k]
            root = row[at].sqrt()
            u[k] = row / root
            v[k] = (weight[:, at] - u[:k, at] @ v[:k]) / root
            rho_exact = v[k] @ v[k]
            norms -= 2 * u[k] * (v[k] @ weight - (v[:k] @ v[k]) @ u[:k])
            norms += u[k].square() * rho_exact
            diagonal -= u[k].square()
            alive[at] = False
            order.append(int(left[at]))
            steps.append(rho_exact)
        weight = (weight - v.T @ u)[:, alive]
        inverse = (inverse - u.T @ u)[alive][:, alive]
        left = left[alive]
    return order, steps
