"""Find a table's columns of texts, words and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.registry import task_types
from prumux.optimizer.tasks.task import Task

from .names import PAIRS, SINGLES, WORDS, column_of
from .table import Table, listed


@dataclass(frozen=True)
class Columns:
    """The columns that a task reads, by the table's own names."""

    first: str
    """The text, the first text of a pair, or the words."""
    second: str | None = None
    """The second text of a pair."""
    label: str | None = None
    group: str | None = None
    """The number or name of each row's query, for tasks that score queries."""
    each: tuple[str, ...] = ()
    """Columns of 0 and 1, one for each of the model's labels, in the order of the labels."""

    def unused(self, table: Table) -> tuple[str, ...]:
        """Columns of the table that the task does not read."""
        used = (self.first, self.second, self.label, self.group, *self.each)
        return tuple(x for x in table.names if x not in used)


def known_columns() -> tuple[str, ...]:
    """Keys of `--columns`: the column names that any task reads."""
    names = ["text_a", "text_b"]
    for task in task_types():
        names += ["tokens"] * task.reads_words + [*task.columns, *task.group_columns[:1]]
    return tuple(dict.fromkeys(names))


def checked(columns: Mapping[str, str], task: Task) -> dict[str, str]:
    """Check `--columns`, and rename its key `text` to `text_a`.

    Raises:
        DataError: a key is unknown or belongs to another task, or the label has two columns.
    """
    named = {"text_a" if k == "text" else k: v for k, v in columns.items()}
    known = (*known_columns(), *task.label_columns)
    for key in named.keys() - set(known):
        raise DataError(f"--columns {key}=... is unknown; these are known: {', '.join(known)}")
    texts = ("tokens",) if task.reads_words else ("text_a", "text_b")
    fitting = (*texts, *task.columns, *task.label_columns, *task.group_columns[:1])
    for key in sorted(named.keys() - set(fitting)):
        raise DataError(
            f"--columns {key}={named[key]} does not fit {task.name}, which reads "
            f"{', '.join(fitting)}"
        )
    labels = [f"{k}={named[k]}" for k in task.columns if k in named]
    if len(labels) > 1:
        raise DataError(f"--columns {' '.join(labels)}: give one of them")
    each = [f"{k}={named[k]}" for k in task.label_columns if k in named]
    if labels and each:
        raise DataError(
            f"--columns {labels[0]} {each[0]}: give the one column that holds all labels, or "
            "one column for each"
        )
    return named


def wanted_columns(named: Mapping[str, str], task: Task) -> set[str]:
    """All column names that must be read from a file to find the task's columns."""
    usual = {
        *named.values(),
        *task.label_columns,
        *task.group_columns,
        *SINGLES,
        *WORDS,
        *(x for p in PAIRS for x in p),
    }
    return usual | set(known_columns()) | {x for t in task_types() for x in t.other_columns}


def find_columns(
    table: Table, task: Task, named: Mapping[str, str] | None, optional_label: bool = False
) -> Columns:
    """The columns that a task reads.

    Args:
        table: the table to search.
        task: the model's task.
        named: the user's names, see `checked`; None = the user cannot name columns.
        optional_label: True if the user's column of labels may be missing.

    Raises:
        DataError: a column is missing, or several columns are candidates for it.
    """
    about = (*task.columns, *task.label_columns, *task.group_columns)
    given = {k: _named(table, k, v) for k, v in (named or {}).items() if k not in about}
    if task.reads_words:
        first, second = _words(table, given, named is not None), None
    else:
        first, second = _texts(table, given, named is not None)
    if named is None:
        return Columns(first, second)
    if task.finds_spans and second is None:
        table.fail(
            None,
            f"'{first}' is the only text, {task.name} reads a question and its context; the "
            f"columns are: {listed(table.names)}\n"
            "say which to use: --columns text_a=QUESTION text_b=CONTEXT",
        )
    if task.scores_pairs and second is None:
        return Columns(first)
    found = _label(table, task, named, (first, second), optional_label)
    return replace(found, group=_group(table, task, named))


def _label(
    table: Table,
    task: Task,
    named: Mapping[str, str],
    texts: tuple[str, str | None],
    optional_label: bool,
) -> Columns:
    """The columns of texts and labels: one label column, or one column for each label."""
    first, second = texts
    key = next((k for k in task.columns if k in named), None)
    if key is None:
        each = _label_columns(table, task, named, (first, second))
        if each:
            return Columns(first, second, each=each)
        return Columns(first, second, _usual_label(table, task, (first, second)))
    missing = not column_of(table.names, named[key])
    if optional_label and missing and _usual_label(table, task, (first, second)) is None:
        return Columns(first, second)
    return Columns(first, second, _named(table, key, named[key]))


def label_names(task: Task) -> str:
    """The usual names of the label column, for messages."""
    return " or ".join(f"'{x}'" for x in (*task.columns, *task.other_columns))


def _named(table: Table, key: str, name: str) -> str:
    found = column_of(table.names, name)
    said = f"(--columns {key}={name}); the columns are: {listed(table.names)}"
    if not found:
        table.fail(None, f"no column '{name}' {said}")
    if len(found) > 1:
        table.fail(None, f"{len(found)} columns '{name}' {said}")
    return found[0]


def _group(table: Table, task: Task, named: Mapping[str, str]) -> str | None:
    """The column with the query of each row; None = the table has no such column."""
    for name in task.group_columns:
        if name in named:
            return _named(table, name, named[name])
        found = column_of(table.names, name)
        if found:
            return found[0]
    return None


def _label_columns(
    table: Table, task: Task, named: Mapping[str, str], texts: tuple[str | None, ...]
) -> tuple[str, ...]:
    """The column of each label, in the order of the model's labels; () = there are none."""
    found: dict[str, str] = {}
    for label in task.label_columns:
        if label in named:
            found[label] = _named(table, label, named[label])
        else:
            usual = [x for x in column_of(table.names, label) if x not in texts]
            if len(usual) > 1:
                table.fail(None, f"{len(usual)} columns are named like the label '{label}'")
            found |= {label: usual[0]} if usual else {}
    _twice(table, found)
    asked = any(x in named for x in task.label_columns)
    other = None if asked or not found else _usual_label(table, task, texts)
    gone = [x for x in task.label_columns if x not in found]
    if gone and found and other is None:
        table.fail(
            None,
            f"column '{next(iter(found.values()))}' is named like a label of the model, but "
            f"no column is named like '{gone[0]}'\n"
            f"say which to use: --columns {gone[0]}=NAME, or --columns {task.columns[0]}=NAME "
            "for one column with all labels",
        )
    if not gone and other is not None:
        table.fail(
            None,
            f"'{other}' and {len(found)} columns named like the model's labels may both hold "
            f"the labels\nsay which to use: --columns {task.columns[0]}={other}, or --columns "
            f"{task.label_columns[0]}={found[task.label_columns[0]]}",
        )
    return () if gone else tuple(found.values())


def _twice(table: Table, found: Mapping[str, str]) -> None:
    """Refuse a column that is named for two labels."""
    first: dict[str, str] = {}
    for label, column in found.items():
        if first.setdefault(column, label) != label:
            table.fail(
                None,
                f"column '{column}' is named for the labels '{first[column]}' and '{label}'\n"
                f"give each label a column of its own: --columns {label}=NAME",
            )


def _usual_label(table: Table, task: Task, texts: tuple[str | None, ...]) -> str | None:
    usual = (*task.columns, *task.other_columns)
    found = dict.fromkeys(y for x in usual for y in column_of(table.names, x))
    names = [x for x in found if x not in texts]
    filled = [x for x in names if any(v is not None for v in table.columns[x])] or names
    if len(filled) > 1:
        both = " and ".join(f"'{x}'" for x in filled)
        table.fail(
            None,
            f"{both} may both hold the labels\n"
            f"say which to use: --columns {task.columns[0]}={filled[0]}",
        )
    return filled[0] if filled else None


def _words(table: Table, given: Mapping[str, str], can_name: bool) -> str:
    if "tokens" in given:
        return given["tokens"]
    found = [y for x in WORDS for y in column_of(table.names, x)]
    if len(found) != 1:
        cure = "name it 'tokens'"
        if can_name:
            cure = "say which to use: --columns tokens=NAME tags=NAME"
        what = "no column 'tokens'" if not found else "more than one column of words"
        table.fail(None, f"{what}; the columns are: {listed(table.names)}\n{cure}")
    return found[0]


def _texts(table: Table, given: Mapping[str, str], can_name: bool) -> tuple[str, str | None]:
    if "text_a" in given:
        return given["text_a"], given.get("text_b")
    names = table.names
    pairs = [
        (a, b) for p, q in PAIRS for a in column_of(names, p) for b in column_of(names, q)
    ]
    paired = {x for p in pairs for x in p}
    singles = [y for x in SINGLES for y in column_of(names, x)]
    found: list[tuple[str, str | None]] = [*pairs]
    found += [(x, None) for x in singles if x not in paired]
    if "text_b" in given:
        found = [(x, given["text_b"]) for x in singles if x != given["text_b"]]
    if len(found) != 1:
        cure = "say which to use: --columns text_a=NAME (and text_b=NAME for pairs)"
        if not can_name:
            cure = "keep one, named 'text' (for pairs two: 'text_a' and 'text_b')"
        what = "more than one candidate for the text" if found else "no text column"
        table.fail(None, f"{what}; the columns are: {listed(names)}\n{cure}")
    return found[0]
