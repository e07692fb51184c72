"""Nearest neighbours of vectors, and the scores of rankings.

Similarities are rounded to six decimals. Equal similarities are ordered by document number, so
copies of a text have the same ranks in every engine.
Axis letters: N texts, Q queries, M documents, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]
DECIMALS = 6
_CHUNK_CELLS = 8_000_000


def unit(vectors: NDArray[Any]) -> Floats:
    """Vectors scaled to length 1. A zero vector is unchanged."""
    wide = np.asarray(vectors, dtype=np.float64)
    length = np.linalg.norm(wide, axis=-1, keepdims=True)
    return np.asarray(wide / np.maximum(length, 1e-12))


def cosines(one: NDArray[Any], other: NDArray[Any]) -> Floats:
    """The cosine of each vector in `one` with its partner in `other`: [..., D] -> [...]."""
    return np.asarray((unit(one) * unit(other)).sum(-1))


def nearest(
    queries: NDArray[Any], documents: NDArray[Any], count: int, never: Iterable[int] = ()
) -> Ids:
    """Numbers of the documents with the largest dot products, best first: [Q, K].

    Args:
        queries, documents: vectors [Q, D] and [M, D].
        count: K, at most the number of candidate documents.
        never: for each query one document to exclude, -1 = none.
    """
    found = np.empty((len(queries), count), np.int64)
    banned = np.array([*never] or [-1] * len(queries))
    rows = max(1, _CHUNK_CELLS // max(1, len(documents)))
    number = np.arange(len(documents))
    for start in range(0, len(queries), rows):
        part = slice(start, start + rows)
        products = queries[part] @ documents.T
        at = np.flatnonzero(banned[part] >= 0)
        steps = np.rint(products * 10**DECIMALS)
        steps[at, banned[part][at]] = -(10.0**9)
        order = -steps.astype(np.int64) * len(documents) + number
        best = np.argpartition(order, min(count, len(documents) - 1), axis=1)[:, :count]
        ranks = np.argsort(np.take_along_axis(order, best, 1), axis=1)
        found[part] = np.take_along_axis(best, ranks, 1)
    return found


def neighbours(vectors: NDArray[Any], count: int) -> Ids:
    """The nearest other texts of each text by cosine, [N, K]."""
    units = unit(vectors)
    return nearest(units, units, min(count, len(units) - 1), range(len(units)))


def kept(one: Ids, other: Ids) -> Floats:
    """The share of numbers in each row of `one` that are also in `other`: [N, K] -> [N]."""
    if not one.shape[1]:
        return np.ones(len(one))
    return np.asarray((one[:, :, None] == other[:, None, :]).any(-1).mean(-1))


def recall(found: Ids, judged: Ids, depth: int) -> Floats:
    """The share of each query's relevant documents among the first `depth`, [Q].

    Args:
        found: documents, best first, [Q, K].
        judged: pairs of document and grade, padded with -1: [Q, R, 2].
        depth: number of documents to score.
    """
    relevant = judged[..., 1] > 0
    hits = (found[:, None, :depth] == judged[..., :1]).any(-1) & relevant
    return np.asarray(hits.sum(1) / np.maximum(relevant.sum(1), 1))


def ndcg(found: Ids, judged: Ids, depth: int) -> Floats:
    """nDCG of each query, [Q], with the grades as gains, as in trec_eval.

    nDCG is DCG = sum_i grade_i / log2(i + 1), divided by the DCG of the best order. The
    arguments are those of `recall`.
    """
    grades = np.maximum(judged[..., 1], 0)
    gains = ((found[:, :depth, None] == judged[:, None, :, 0]) * grades[:, None]).sum(-1)
    discount = 1 / np.log2(np.arange(2, depth + 2))
    best = -np.sort(-grades, axis=1)[:, :depth]
    ideal = (best * discount[: best.shape[1]]).sum(1)
    dcg = (gains * discount[: gains.shape[1]]).sum(1)
    return np.asarray(np.divide(dcg, ideal, out=np.zeros(len(dcg)), where=ideal > 0))
