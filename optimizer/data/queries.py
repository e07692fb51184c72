"""Rows that belong to queries: a reranker orders the passages of one query."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .kept import missing
from .label_names import folded
from .table import Table


def queries_of(table: Table, column: str | None, texts: Sequence[str]) -> NDArray[np.int64]:
    """The number of each row's query, [N]. Queries count from 0 in the order of the rows.

    Args:
        table: the rows.
        column: the column of the query's number or name; None = the first text is the query.
        texts: the first text of each row, [N].

    Raises:
        DataError: the column is empty in a row.
    """
    keys: Sequence[Any] = texts if column is None else table.columns[column]
    numbers: dict[str, int] = {}
    found = []
    for i, key in enumerate(keys):
        if column is not None and missing(key):
            table.fail(i, f"'{column}' is empty: say which query the row is of")
        name = key if column is None else folded(key)
        found.append(numbers.setdefault(name, len(numbers)))
    return np.array(found, dtype=np.int64)


def without(groups: NDArray[np.int64]) -> str:
    """The message about queries that are left out.

    Args:
        groups: the query number of each row that is left out.
    """
    queries = len(np.unique(groups))
    which = "1 query" if queries == 1 else f"{queries} queries"
    return f"left out: {which} without a relevant passage ({len(groups)} rows)"
