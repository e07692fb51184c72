"""Rows as sparse counts of pieces and pairs: what a bag of embeddings is linear in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.families.bag import PRIME, pieces_of
from prumux.optimizer.model.sizes import Encoder

Sparse = Any
"""A matrix of scipy in CSR form, for which scipy has no types."""


@dataclass(frozen=True, eq=False)
class Features:
    """Rows as a matrix over the vectors of a bag: x = matrix @ vectors.

    An entry is how often the row has the piece or pair, over the root of the row's length.
    """

    matrix: Sparse
    """[N, F] over the vectors that are used at all, float32."""
    used: NDArray[np.int64]
    """Which of all vectors these are, [F]: those of pieces first, then those of pairs."""

    def of(self, rows: Encoded, e: Encoder) -> Features:
        """Other rows over the same vectors; all others count nothing."""
        found = bag_features(rows, e)
        at = np.searchsorted(self.used, found.used).clip(max=len(self.used) - 1)
        known = self.used[at] == found.used
        move = scipy.sparse.csr_matrix(
            (np.ones(known.sum(), np.float32), (known.nonzero()[0], at[known])),
            shape=(len(found.used), len(self.used)),
        )
        return replace(self, matrix=found.matrix @ move)


def bag_features(rows: Encoded, e: Encoder) -> Features:
    """The rows over the vectors that they use.

    Args:
        rows: N rows.
        e: sizes of the bag of embeddings.
    """
    ids, lengths = rows.ids.values.astype(np.int64), rows.ids.lengths
    row = np.repeat(np.arange(len(rows)), lengths)
    pieces = ids
    if rows.types is not None:
        pieces = ids + e.vocab * rows.types.values.astype(np.int64)
    columns, places = [pieces], [row]
    if buckets := int(e.number("buckets")):
        before = np.concatenate([np.array([e.pad_id]), ids[:-1]])
        before[rows.ids.starts[lengths > 0]] = e.pad_id
        columns.append(pieces_of(e) + (before * PRIME + ids) % buckets)
        places.append(row)
    used, at = np.unique(np.concatenate(columns), return_inverse=True)
    place = np.concatenate(places)
    value = (1 / np.sqrt(np.maximum(lengths, 1)))[place].astype(np.float32)
    shape = len(rows), len(used)
    return Features(scipy.sparse.csr_matrix((value, (place, at)), shape=shape), used)
