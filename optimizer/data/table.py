"""The columns of one split, before texts and labels are checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from prumux.optimizer.base.errors import DataError


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of one split."""

    parts: tuple[tuple[str, int], ...]
    """Name and number of rows of each file of the split."""
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    """The values of the wanted columns, by name. A null value is None."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The data's own class names by column, in the order of the class ids."""
    at: Sequence[int] | None = None
    """Indices of the remaining rows, counted over all files; None = all rows remain."""

    @property
    def title(self) -> str:
        """The name of the table in messages."""
        return self.parts[0][0] + (f" (+ {len(self.parts) - 1})" if self.parts[1:] else "")

    @property
    def rows(self) -> int:
        """Number of remaining rows."""
        return sum(n for _, n in self.parts) if self.at is None else len(self.at)

    def take(self, rows: Sequence[int]) -> Table:
        """Keep the rows at these indices. Messages still give the row numbers of the files."""
        at = rows if self.at is None else [self.at[i] for i in rows]
        columns = {k: [v[i] for i in rows] for k, v in self.columns.items()}
        return replace(self, columns=columns, at=at)

    def place(self, row: int) -> str:
        """File and row number for a message. `row` counts remaining rows from 0."""
        row = row if self.at is None else self.at[row]
        for name, rows in self.parts:
            if row < rows:
                return f"{name}, row {row + 1}"
            row -= rows
        raise IndexError(row)

    def fail(self, row: int | None, text: str) -> NoReturn:
        """Raise DataError for a remaining row, counted from 0; None = for the whole table."""
        raise DataError(f"{self.title if row is None else self.place(row)}: {text}")


def listed(names: Iterable[str]) -> str:
    """Sorted names for a message."""
    return ", ".join(sorted(names)) or "none"


def joined(tables: Sequence[Table]) -> Table:
    """Join the shards of one split, in order.

    Raises:
        DataError: the shards' columns differ.
    """
    first = tables[0]
    for table in tables:
        if set(table.names) != set(first.names):
            raise DataError(
                f"{table.title} has columns {listed(table.names)}; {first.title} has "
                f"{listed(first.names)}: the shards of one split must agree"
            )
        if table.classes != first.classes:
            raise DataError(
                f"{table.title} and {first.title} name their classes differently: "
                "the shards of one split must agree"
            )
    merged = {k: [v for x in tables for v in x.columns[k]] for k in first.columns}
    parts = tuple(p for x in tables for p in x.parts)
    return Table(parts, first.names, merged, first.classes)


def check_characters(table: Table, row: int, name: str, text: str) -> None:
    """Refuse a text with half a surrogate pair, which no tokenizer takes."""
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        table.fail(row, f"'{name}' holds half a character (a lone surrogate): remove it")
