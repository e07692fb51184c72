"""Label columns with several labels per row: lists, texts, or zeros and ones."""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

from .labels import ClassId, Fail, class_of, first_names, integer

DELIMITERS = ("|", ";", ",", "/", " ")


class ZerosAndOnes(list[int]):
    """One number for each of the model's labels: 1 if the label applies, else 0."""


class LabelLists(NamedTuple):
    """The labels of each row as a list."""

    lists: list[list[Any]]
    """Label names or ids of each row."""
    settled: bool
    """True if all values are ids of the model's labels, not names or ids of the data."""
    notes: tuple[str, ...] = ()
    """Notes for the user on how ambiguous values were read."""


def label_lists(
    values: Sequence[Any], names: Sequence[str], read: Collection[str], fail: Fail
) -> LabelLists:
    """The labels of N rows as lists of names or ids.

    A value has one of these forms:

    - a list of names or ids;
    - a list with a 0 or 1 for each label;
    - a text that contains such a list;
    - a text of names separated by one of `DELIMITERS`;
    - a single label.

    Args:
        values: the values of the column, [N].
        names: the model's labels, [C].
        read: further label names in the data. Upper and lower case are equal.
        fail: raises DataError.
    """
    also = {x.strip().casefold() for x in read}

    def known(text: str) -> bool:
        return text.casefold() in also or class_of(text, names) is not None

    found, notes = _split([_opened(x) for x in values], known, fail)
    lists = [x if isinstance(x, list) else [x] for x in found]
    if not lists or not all(_zeros_and_ones(x, len(names)) for x in lists):
        return LabelLists(lists, False, notes)
    if not all(isinstance(x, ZerosAndOnes) for x in lists) and _may_be_ids(lists, len(names)):
        fail(
            None,
            f"a list such as {lists[0]!r:.40} may hold ids, or a 0 or 1 for each of the "
            f"{len(names)} labels: write names, or 0.0 and 1.0",
        )
    return LabelLists([[ClassId(i) for i, y in enumerate(x) if y] for x in lists], True, notes)


def _opened(value: Any) -> Any:
    """Parse a list that is written as text, as in csv files of pandas; keep other values."""
    if not isinstance(value, str) or not value.strip().startswith("["):
        return value
    try:
        found = ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    return found if isinstance(found, list) else value


def _split(
    values: list[Any], known: Callable[[str], bool], fail: Fail
) -> tuple[list[Any], tuple[str, ...]]:
    """Split texts into lists of names, if one delimiter splits all of them into names."""
    texts = {x for x in values if isinstance(x, str)}
    fitting = [x for x in DELIMITERS if any(x in y.strip() for y in texts)]
    fitting = [x for x in fitting if all(all(map(known, _parts(y, x))) for y in texts)]
    whole = all(known(x.strip()) for x in texts)
    if not fitting:
        if not whole:
            _refuse(values, known, fail)
        return values, ()
    if whole or len(fitting) > 1:
        text = next(x for x in sorted(texts) if fitting[0] in x.strip())
        ways = " or ".join([*["as one label"] * whole, *(f"at '{x}'" for x in fitting)])
        fail(None, f"'{text:.60}' may be read {ways}: give lists (jsonl, parquet)")
    at = fitting[0]
    lists = [_parts(x, at) if isinstance(x, str) else x for x in values]
    return lists, (f"labels: texts are split at '{at}'",)


def _parts(text: str, delimiter: str) -> list[str]:
    return [x.strip() for x in text.split(delimiter) if x.strip()]


def _refuse(values: list[Any], known: Callable[[str], bool], fail: Fail) -> None:
    """Report the first part of a text that is no label, using the best-fitting delimiter.

    Texts without a delimiter are single labels and are not reported here.
    """
    texts = [(i, x) for i, x in enumerate(values) if isinstance(x, str)]

    def unread(delimiter: str) -> list[tuple[int, str]]:
        return [(i, y) for i, x in texts for y in _parts(x, delimiter) if not known(y)]

    used = [x for x in DELIMITERS if any(x in text.strip() for _, text in texts)]
    if not used:
        return  # `label_ids` reports unknown single labels
    row, part = min((unread(x) for x in used), key=len)[0]
    fail(
        row,
        f"'{part:.60}' in {values[row]!r:.60} is none of the model's labels\n"
        "several labels of a row are a list, or a text with one of "
        f"{' '.join(DELIMITERS)} between them",
    )


def _zeros_and_ones(row: list[Any], labels: int) -> bool:
    return len(row) == labels and all(integer(x) in (0, 1) for x in row)


def _may_be_ids(lists: list[list[Any]], labels: int) -> bool:
    """True if rows of 0 and 1 may be ids: whole numbers, each at most once per row."""
    return all(
        not any(isinstance(y, float | bool) for y in x)
        and len({integer(y) for y in x}) == len(x) <= labels
        and all((integer(y) or 0) < labels for y in x)
        for x in lists
    )


def first_labels(names: Sequence[str], row: Sequence[int]) -> str:
    """The labels of a row, for messages."""
    held = [name for name, y in zip(names, row, strict=True) if y]
    return f"'{first_names(held)}'" if held else "no label"
