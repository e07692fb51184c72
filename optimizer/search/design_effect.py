"""Rows that were mixed into one are not independent: they hurt each other's answers.

Bounds of a loss take rows as independent draws. Where n rows share a forward pass, groups are.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.tasks.metrics import Floats

Ints = NDArray[np.int64]
RESAMPLES = 2000
_CHUNK_CELLS = 4_000_000


def design_effect(losses: NDArray[np.floating], groups: Ints) -> float:
    """How many rows in groups tell as much of a mean as one independent row; at least 1.

    Kish's design effect: sum over groups of (sum of d_i)^2 over the sum of d_i^2, with d_i the
    row's loss less the mean.

    Args:
        losses: one a row, [N].
        groups: which rows were mixed together, numbered from 0, [N].
    """
    off = losses - losses.mean()
    alone = float((off**2).sum())
    together = float((np.bincount(groups, weights=off) ** 2).sum())
    return max(1.0, together / alone) if alone else 1.0


def resamples(rows: int, seed: int, groups: Ints | None = None) -> Iterable[Floats]:
    """Weights [R, N] of `RESAMPLES` resamples with replacement, some at a time.

    With `groups` whole groups are drawn.
    """
    units = rows if groups is None else int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    chunk = max(1, min(RESAMPLES, _CHUNK_CELLS // rows))
    for start in range(0, RESAMPLES, chunk):
        n = min(chunk, RESAMPLES - start)
        drawn = rng.integers(units, size=(n, units)) + np.arange(n)[:, None] * units
        found = np.bincount(drawn.ravel(), minlength=n * units).reshape(n, units)
        weights = found.astype(float)
        yield weights if groups is None else weights[:, groups]
