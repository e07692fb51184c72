"""Rows as sparse counts of pieces and pairs. A bag of embeddings is linear in these counts."""

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
"""A scipy matrix in CSR format. scipy has no type annotations for it."""


@dataclass(frozen=True, eq=False)
class Features:
    """Rows as a sparse matrix: the logits are matrix @ vectors, before the shift.

    An entry is the count of the piece or pair in the row, divided by the square root of the
    row's length in tokens.
    """

    matrix: Sparse
    """[N, F], float32. Only vectors that some row uses have a column."""
    used: NDArray[np.int64]
    """Number of each column's vector, [F]. Vectors of pieces come before vectors of pairs."""

    def of(self, rows: Encoded, e: Encoder) -> Features:
        """Features of other rows, over the vectors that these features use."""
        found = bag_features(rows, e)
        at = np.searchsorted(self.used, found.used).clip(max=len(self.used) - 1)
        known = self.used[at] == found.used
        move = scipy.sparse.csr_matrix(
            (np.ones(known.sum(), np.float32), (known.nonzero()[0], at[known])),
            shape=(len(found.used), len(self.used)),
        )
        return replace(self, matrix=found.matrix @ move)


ALONE_TOKENS = 3
"""Number of tokens in a row of one piece: the piece between two special tokens."""
NO_PIECES = np.zeros(0, np.int64)


def bag_features(rows: Encoded, e: Encoder, alone: NDArray[np.int64] = NO_PIECES) -> Features:
    """Build the features of rows, over the vectors that they use.

    Args:
        rows: N rows.
        e: sizes of the bag of embeddings.
        alone: piece ids. For each id, one more row is made: the piece between two special
            tokens. In this row only the piece is counted, neither special tokens nor pairs.
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
    columns.append(alone)
    places.append(len(rows) + np.arange(len(alone)))
    used, at = np.unique(np.concatenate(columns), return_inverse=True)
    place = np.concatenate(places)
    counted = np.concatenate([lengths, np.full(len(alone), ALONE_TOKENS)])
    value = (1 / np.sqrt(np.maximum(counted, 1)))[place].astype(np.float32)
    shape = len(counted), len(used)
    return Features(scipy.sparse.csr_matrix((value, (place, at)), shape=shape), used)
