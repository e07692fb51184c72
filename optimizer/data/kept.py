"""Leave out rows without text, and unlabelled rows of a labelled split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from prumux.optimizer.tasks.labels import Fail, class_of, integer
from prumux.optimizer.tasks.squad import read_answers
from prumux.optimizer.tasks.task import Task

from .columns import Columns
from .label_names import LabelMap, folded
from .table import Table

HIDDEN = -1
"""The value that marks unlabelled rows in GLUE's test splits and in SNLI."""


class Kept(NamedTuple):
    """The rows of a table that are used."""

    table: Table
    skipped: str
    """Number of rows that are left out, the reason, and the first such row; '' = none."""
    unlabelled: str
    """The reason why a label column gives no labels; '' = it gives labels, or is missing."""


def missing(value: Any) -> bool:
    """True for null, NaN (pandas' null), an empty text, and blanks."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value))


def keep(
    table: Table, columns: Columns, task: Task, chosen: LabelMap, reported: bool = False
) -> Kept:
    """Leave out rows without text, and unlabelled rows if other rows have labels.

    Args:
        table: the rows.
        columns: the columns that are read.
        task: the task that reads the labels.
        chosen: `--labels`; every value that it names counts as a label.
        reported: True if the rows are for the report only. Labels that are all the same then
            count as no labels, and raise no error.

    Raises:
        DataError: no row has text.
    """
    texts = [table.columns[x] for x in (columns.first, columns.second) if x is not None]
    every = any if task.finds_spans else all
    bare = {i for i, row in enumerate(zip(*texts, strict=True)) if every(map(_no_text, row))}
    if len(bare) == table.rows:
        both = " or " if task.finds_spans else " and "
        names = both.join(f"'{x}'" for x in (columns.first, columns.second) if x)
        table.fail(None, f"all {len(bare)} rows are empty in {names}: give rows with text")
    left = [i for i in range(table.rows) if i not in bare]
    unlabelled, without = "", set[int]()
    if columns.label is not None:
        values = table.columns[columns.label]
        without = {i for i in left if missing(values[i])}
        known = [values[i] for i in left if i not in without]
        unlabelled = _no_labels(known, columns.label, task, chosen, reported)
        hidden = _hidden_are_none(known, task, chosen)
        without |= {i for i in left if hidden and integer(values[i]) == HIDDEN}
        without = set() if unlabelled else without
    counts = [
        (len(bare), f"without {'question or context' if task.finds_spans else 'text'}", bare),
        (len(without), f"without a label in '{columns.label}'", without),
    ]
    said = [f"{n} {what} ({table.place(min(rows))})" for n, what, rows in counts if n]
    skipped = f"rows are skipped: {', '.join(said)}" if said else ""
    rows = [i for i in left if i not in without]
    return Kept(table.take(rows) if skipped else table, skipped, unlabelled)


def _no_text(value: Any) -> bool:
    if isinstance(value, list):
        return all(missing(x) for x in value)
    return missing(value)


def _no_labels(
    known: Sequence[Any], name: str, task: Task, chosen: LabelMap, reported: bool
) -> str:
    """The reason for not using these values as labels; '' = they are labels."""
    if not known:
        return f"it has no labels (its column '{name}' is empty)"
    if task.finds_spans and not any(map(read_answers, known)):
        bad = [x for x in known if read_answers(x) is None]
        return "" if bad else "it has no labels (no question has an answer)"
    if task.reads_words or task.finds_spans:
        return ""
    different = {folded(x) for x in known if not isinstance(x, list)}
    if different == {str(HIDDEN)} and str(HIDDEN) not in chosen.pairs:
        return f"it has no labels (all are {HIDDEN})"
    some = len(task.labels) > 1 or not task.has_classes
    same = reported and len(different) == 1 and some
    return f"all its {len(known)} labels are '{known[0]}'" if same else ""


def _hidden_are_none(known: Sequence[Any], task: Task, chosen: LabelMap) -> bool:
    """True if -1 means "no label", as in SNLI: all classes of the model occur besides -1."""
    if task.reads_words or not task.exclusive or chosen.pairs:
        return False
    ids = {integer(x) for x in known}
    return HIDDEN in ids and ids - {HIDDEN} == set(range(len(task.labels)))


def label_values(values: Sequence[Any], names: Sequence[str], fail: Fail) -> list[Any]:
    """Turn booleans into class names or ids, and refuse lists."""
    found: list[Any] = []
    by_name = class_of("true", names) is not None and class_of("false", names) is not None
    for i, x in enumerate(values):
        if isinstance(x, list | dict):
            fail(
                i,
                f"the label {x!r:.40} is a {type(x).__name__}: give one label a row;\n"
                "a model with several labels a row says so in its config.json: "
                '"problem_type": "multi_label_classification"',
            )
        if isinstance(x, bool) and len(names) != 2 and not by_name:
            fail(i, f"the label {x} is true or false, the model has {len(names)} labels")
        found.append((str(x) if by_name else int(x)) if isinstance(x, bool) else x)
    return found
