"""Join columns of 0 and 1, one for each label, into one column of labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from prumux.optimizer.tasks.label_lists import ZerosAndOnes
from prumux.optimizer.tasks.labels import integer

from .columns import Columns
from .kept import missing
from .table import Table


def with_zeros_and_ones(table: Table, columns: Columns) -> tuple[Table, Columns]:
    """Join the columns of the labels into one column, whose name becomes `Columns.label`.

    A row has no label if all its values are empty, or all are -1.

    Raises:
        DataError: a value is neither 0 nor 1.
    """
    if not columns.each:
        return table, columns
    each = [table.columns[x] for x in columns.each]
    rows = [
        _zeros_and_ones(table, i, columns.each, row)
        for i, row in enumerate(zip(*each, strict=True))
    ]
    title = ", ".join(columns.each[:3]) + (", ..." if columns.each[3:] else "")
    joined = replace(table, columns={**table.columns, title: rows})
    return joined, replace(columns, label=title)


def _zeros_and_ones(
    table: Table, row: int, names: Sequence[str], values: Sequence[Any]
) -> ZerosAndOnes | None:
    numbers = [_truth(x) for x in values]
    if all(x == -1 for x in numbers) or all(missing(x) for x in values):
        return None
    found = ZerosAndOnes()
    for name, value, number in zip(names, values, numbers, strict=True):
        if number not in (0, 1):
            shown = "empty" if missing(value) else f"{value!r:.40}"
            table.fail(row, f"'{name}' is {shown}: write 0 or 1, in every column of a label")
        found.append(number)
    return found


def _truth(value: Any) -> int | None:
    """Convert a number, a boolean or its text to a whole number; None = something else."""
    text = value.strip().casefold() if isinstance(value, str) else value
    number = {"true": 1, "false": 0}.get(text) if isinstance(text, str) else None
    return integer(text) if number is None else number
