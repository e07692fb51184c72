"""Find the columns of a table that hold texts, words and labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.registry import task_types
from prumux.optimizer.tasks.task import Task

from .names import PAIRS, SINGLES, WORDS, column_of
from .table import Table, listed


@dataclass(frozen=True)
class Columns:
    """The columns of a table that are read, as the table names them."""

    first: str
    """The text, the first text of a pair, or the words."""
    second: str | None = None
    """The second text of a pair."""
    label: str | None = None

    def unused(self, table: Table) -> tuple[str, ...]:
        """The table's other columns."""
        return tuple(x for x in table.names if x not in (self.first, self.second, self.label))


def known_columns() -> tuple[str, ...]:
    """Names of columns that some task reads, and that `--columns` may rename."""
    names = ["text_a", "text_b"]
    for task in task_types():
        names += ["tokens"] * task.reads_words + [*task.columns]
    return tuple(dict.fromkeys(names))


def checked(columns: Mapping[str, str], task: Task) -> dict[str, str]:
    """`--columns` with the keys of `known_columns`.

    Raises:
        DataError: a key that is unknown or of another task, or two names for the label.
    """
    named = {"text_a" if k == "text" else k: v for k, v in columns.items()}
    known = known_columns()
    for key in named.keys() - set(known):
        raise DataError(f"--columns {key}=... is unknown; these are known: {', '.join(known)}")
    texts = ("tokens",) if task.reads_words else ("text_a", "text_b")
    fitting = (*texts, *task.columns)
    for key in sorted(named.keys() - set(fitting)):
        raise DataError(
            f"--columns {key}={named[key]} does not fit {task.name}, which reads "
            f"{', '.join(fitting)}"
        )
    labels = [f"{k}={named[k]}" for k in task.columns if k in named]
    if len(labels) > 1:
        raise DataError(f"--columns {' '.join(labels)}: give one of them")
    return named


def wanted_columns(named: Mapping[str, str]) -> set[str]:
    """All names of columns that some task may read."""
    usual = {*named.values(), *SINGLES, *WORDS, *(x for p in PAIRS for x in p)}
    return usual | set(known_columns()) | {x for t in task_types() for x in t.other_columns}


def find_columns(
    table: Table, task: Task, named: Mapping[str, str] | None, optional_label: bool = False
) -> Columns:
    """The columns that a task reads.

    Args:
        table: has them.
        task: the model's.
        named: what the user named, see `checked`; None where nothing can be named.
        optional_label: whether the column that the user named for labels may be missing.

    Raises:
        DataError: a column is missing, or several may be it.
    """
    given = {k: _named(table, k, v) for k, v in (named or {}).items() if k not in task.columns}
    if task.reads_words:
        first, second = _words(table, given, named is not None), None
    else:
        first, second = _texts(table, given, named is not None)
    if named is None:
        return Columns(first, second)
    if task.scores_pairs and second is None:
        return Columns(first)
    key = next((k for k in task.columns if k in named), None)
    if key is None:
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
