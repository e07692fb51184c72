"""The design effect of multiplexed rows, which depend on the other rows of their groups.

Bounds of a loss assume that rows are independent draws. If n rows share a forward pass, only
the groups of n rows are independent. Kish's design effect (Kish 1965, Survey Sampling) is the
number of grouped rows that carry as much information as one independent row.
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
    """The number of grouped rows that count as one independent row, at least 1.

        deff = sum_g (sum_{i in g} d_i)^2 / sum_i d_i^2,    d_i = loss_i - mean loss

    Args:
        losses: the loss of each row, [N].
        groups: the group of each row, numbered from 0, [N].
    """
    off = losses - losses.mean()
    alone = float((off**2).sum())
    together = float((np.bincount(groups, weights=off) ** 2).sum())
    return max(1.0, together / alone) if alone else 1.0


def linked_design_effect(losses: NDArray[np.floating], of: Ints, groups: Ints) -> float:
    """The design effect of queries whose rows share forward passes with other queries' rows.

        deff = sum_qr c_qr d_q d_r / sum_q d_q^2,    d_q = loss_q - mean loss

    Here c_qr is the share of query q's rows whose group contains a row of query r. If every
    row is its own query, the result equals `design_effect`.

    Args:
        losses: the loss of each query, [Q].
        of: the query of each row, numbered from 0, [N].
        groups: the group of each row, numbered from 0, [N].
    """
    from scipy.sparse import csr_matrix

    off = losses - losses.mean()
    alone = float((off**2).sum())
    if not alone:
        return 1.0
    cells = (np.ones(len(of)), (groups, of))
    rows = csr_matrix(cells, shape=(int(groups.max()) + 1, len(losses)))
    share = rows.multiply(1 / np.bincount(of)).tocsr()
    together = float((share @ off) @ ((rows > 0).astype(float) @ off))
    return max(1.0, together / alone)


def resamples(rows: int, seed: int, groups: Ints | None = None) -> Iterable[Floats]:
    """Yield bootstrap weights [R, N] in chunks: `RESAMPLES` resamples with replacement.

    If `groups` is given, whole groups are drawn instead of rows.
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
