"""Rows of unequal length in one array behave as a list of lists does."""

from __future__ import annotations

import doctest

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from prumux.optimizer.data import ragged
from prumux.optimizer.data.ragged import Ragged

ROWS = st.lists(st.lists(st.integers(0, 2**31 - 1), max_size=5), max_size=6)


@given(ROWS, ROWS, st.data())
def test_same_as_lists(
    rows: list[list[int]], more: list[list[int]], data: st.DataObject
) -> None:
    found = Ragged.of(rows)
    assert found.tolist() == rows
    assert len(found) == len(rows)
    assert found.lengths.tolist() == [len(x) for x in rows]
    assert found[1:].tolist() == rows[1:]
    assert Ragged.joined([found, Ragged.of(more)]).tolist() == rows + more
    which = data.draw(st.lists(st.integers(0, len(rows) - 1))) if rows else []
    at = np.array(which, dtype=np.int64)
    assert found.take(at).tolist() == [rows[i] for i in which]
    padded = found.padded(at, 6, -1)
    assert padded.dtype == np.int64
    assert padded.tolist() == [rows[i] + [-1] * (6 - len(rows[i])) for i in which]


def test_example() -> None:
    found = doctest.testmod(ragged, extraglobs={"Ragged": Ragged, "np": np})
    assert (found.attempted > 0, found.failed) == (True, 0)
