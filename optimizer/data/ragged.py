"""Rows of whole numbers of unequal length, in one flat array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import overload

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[NDArray[np.int32]]):
    """N rows of numbers, stored in 4 bytes a number and padded without a loop over rows.

    Example:
        >>> rows = Ragged.of([(1, 2, 3), (4,)])
        >>> rows.lengths
        array([3, 1])
        >>> rows.padded(np.array([1, 0]), length=3, fill=0)
        array([[4, 0, 0],
               [1, 2, 3]])
    """

    values: NDArray[np.int32]
    """All rows, joined end to end, [sum of lengths]."""
    ends: Ints
    """Index in `values` behind the last number of each row, [N]."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[int] | NDArray[np.integer]]) -> Ragged:
        """Copy rows into one array."""
        given = list(rows)
        ends = np.cumsum([len(x) for x in given], dtype=np.int64)
        count = int(ends[-1]) if given else 0
        return cls(np.fromiter(chain.from_iterable(given), np.int32, count), ends)

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """The rows of all parts, in order. `parts` must not be empty."""
        if len(parts) == 1:
            return parts[0]
        starts = np.cumsum([0, *(len(x.values) for x in parts[:-1])])
        ends = [x.ends + start for x, start in zip(parts, starts, strict=True)]
        return cls(np.concatenate([x.values for x in parts]), np.concatenate(ends))

    @cached_property
    def starts(self) -> Ints:
        """Index in `values` at which each row starts, [N]."""
        return np.concatenate([np.zeros(1, np.int64), self.ends])[:-1]

    @cached_property
    def lengths(self) -> Ints:
        """Count of the numbers in each row, [N]."""
        return self.ends - self.starts

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self.values[a:b] for a, b in zip(self.starts, self.ends, strict=True))

    @overload
    def __getitem__(self, i: int) -> NDArray[np.int32]: ...
    @overload
    def __getitem__(self, i: slice) -> Ragged: ...
    def __getitem__(self, i: int | slice) -> NDArray[np.int32] | Ragged:
        if isinstance(i, slice):
            return self.take(np.arange(len(self))[i])
        return self.values[self.starts[i] : self.ends[i]]

    def take(self, rows: Ints) -> Ragged:
        """The rows at these indices, in this order."""
        lengths = self.lengths[rows]
        ends = np.cumsum(lengths)
        shift = np.repeat(self.starts[rows] - (ends - lengths), lengths)
        return Ragged(self.values[np.arange(len(shift)) + shift], ends)

    def padded(self, rows: Ints, length: int, fill: int) -> Ints:
        """The rows at these indices, padded with `fill` on the right: int64 [B, length]."""
        found = np.full((len(rows), length), fill, dtype=np.int64)
        found[np.arange(length) < self.lengths[rows][:, None]] = self.take(rows).values
        return found

    def block(self, start: int, stop: int, real: NDArray[np.bool_], fill: int) -> Ints:
        """Neighbouring rows, each padded on the right: int64 [B, T].

        Args:
            start: index of the first row.
            stop: index behind the last row.
            real: [B, T], True at each row's numbers and False at padding.
            fill: the number used for padding.
        """
        found = np.full(real.shape, fill, dtype=np.int64)
        found[real] = self.values[self.starts[start] : self.ends[stop - 1]]
        return found

    def tolist(self) -> list[list[int]]:
        """The rows as lists."""
        return [x.tolist() for x in self]
