"""Converts label values of a data column to numbers. Several tasks share this."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Labels = NDArray[Any] | tuple[NDArray[Any], ...]
"""Labels of N rows: class ids int64 [N], scores float64 [N], or an int64 array per row."""
Fail = Callable[[int | None, str], NoReturn]
"""Raises DataError with the file, the row (None = the whole file) and a text."""

IGNORE = -100
"""The label of a position that is not scored."""


class ClassId(int):
    """A number that is certainly a class id, even if a class name is spelled like it."""


def label_ids(values: Sequence[Any], names: Sequence[str], fail: Fail, allowed: int) -> Ints:
    """Class ids [N] from ids or label names.

    A column is read as names if every value is a label name, else as ids. Label names may be
    numbers that differ from their ids, say '1' to '5'. A column of whole numbers is then read
    as names if only names fit, and as ids if only ids fit. If both fit, it is an error.

    Args:
        values: the values of the label column.
        names: the label names, in the order of their ids.
        fail: raises DataError.
        allowed: an id that is accepted although no label has it.
    """
    known = _ids_of_names(tuple(names))
    texts = [x.strip() if isinstance(x, str) else x for x in values]
    texts = _settled(texts, names, fail, allowed)
    by_name = [_find(known, x) for x in texts]
    if None not in by_name:
        return np.array(by_name, dtype=np.int64)
    ids = [integer(x) for x in texts]
    named = any(name is not None and i is None for name, i in zip(by_name, ids, strict=True))
    for i, (value, found) in enumerate(zip(texts, ids, strict=True)):
        if value is None:
            fail(i, "the label is empty: fill it in or remove the row")
        if found is None and by_name[i] is not None:
            continue  # a column of names: report a row without a label name instead
        if found is None or named:
            mixed = "" if found is None else "; other rows hold names: use names or ids in all"
            fail(
                i,
                f"label {value!r:.60} is neither an id nor one of the model's: "
                f"{first_names(names)}{mixed}",
            )
        if found != allowed and not 0 <= found < len(names):
            fail(
                i,
                f"label {found} is out of range, the model has {len(names)} labels "
                f"(0..{len(names) - 1}): use its ids or names",
            )
    return np.array(ids, dtype=np.int64)


def _settled(values: list[Any], names: Sequence[str], fail: Fail, allowed: int) -> list[Any]:
    """Replace whole numbers that are label names, not ids, by class ids; keep other values."""
    numbers = [None if isinstance(x, ClassId) else integer(x) for x in values]
    named = {integer(name): i for i, name in enumerate(names)}
    seen = {x for x in numbers if x is not None and x != allowed}
    same = all(number == i for number, i in named.items())
    if None in named or same or not seen or not seen <= named.keys():
        return values
    if seen <= set(range(len(names))):
        one = min(seen)
        fail(
            None,
            f"labels {', '.join(map(str, sorted(seen)[:8]))} may be ids (0..{len(names) - 1}) "
            f"or names ({', '.join(names[:8])}) of the model's labels\n"
            f"say which, each label once: --labels {one}={one} ... if they are names, "
            f"--labels {one}={names[one]} ... if they are ids",
        )
    return [
        ClassId(named[number]) if number in named else value
        for value, number in zip(values, numbers, strict=True)
    ]


@lru_cache(maxsize=1)  # called once per row
def _ids_of_names(names: tuple[str, ...]) -> Mapping[str, int]:
    """Class ids by case-folded name; by exact name if some names differ only in case."""
    folded = {x.casefold(): i for i, x in enumerate(names)}
    return folded if len(folded) == len(names) else {x: i for i, x in enumerate(names)}


def _find(known: Mapping[str, int], value: Any) -> int | None:
    if not isinstance(value, str):
        return None
    return known.get(value, known.get(value.casefold()))


def class_of(value: Any, names: Sequence[str]) -> int | None:
    """The class of a value, by name if possible, else by id; None if it is neither."""
    text = value.strip() if isinstance(value, str) else value
    named, number = _find(_ids_of_names(tuple(names)), text), integer(text)
    if named is not None or number is None:
        return named
    return number if 0 <= number < len(names) else None


def first_names(names: Sequence[str]) -> str:
    """The first class names, for messages."""
    return ", ".join(names[:8]) + (", ..." if names[8:] else "")


def integer(value: Any) -> int | None:
    """The value as a whole number, also from a text or a float; None for other values."""
    try:
        number = float(value) if isinstance(value, str | int | float) else 0.5
    except (ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None
