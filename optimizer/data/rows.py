"""Rows of text, words and labels, read from the columns of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.labels import Labels
from prumux.optimizer.tasks.registry import task_types
from prumux.optimizer.tasks.task import Task

from .files import (
    Table,
    find_files,
    hub_splits,
    hub_table,
    is_hub_id,
    joined,
    listed,
    read_file,
)
from .label_names import LabelMap, resolved, resolved_tags

_PAIRS = (
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("sentence1", "sentence2"),
    ("question1", "question2"),
)
_SINGLES = ("text", "sentence", "text_a")


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts, pairs of texts or lists of words, with or without labels."""

    text_a: tuple[str, ...]
    text_b: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    """The words of each row, for tasks that read words; `text_a` is empty then."""
    labels: Labels | None = None
    """Labels from `Task.read_labels`; None = unlabelled."""
    notes: tuple[str, ...] = ()
    """The meaning that label values were given, in words."""
    labels_used: frozenset[str] = frozenset()
    """Keys of `--labels` that occurred."""

    def __len__(self) -> int:
        return len(self.text_a if self.words is None else self.words)

    def take(self, indices: Iterable[int]) -> Rows:
        """The rows at these indices, in this order."""
        at = [int(i) for i in indices]
        labels = self.labels
        if isinstance(labels, tuple):
            labels = tuple(labels[i] for i in at)
        elif labels is not None:
            labels = labels[np.array(at, dtype=np.int64)]
        return Rows(
            text_a=tuple(self.text_a[i] for i in at) if self.words is None else (),
            text_b=None if self.text_b is None else tuple(self.text_b[i] for i in at),
            words=None if self.words is None else tuple(self.words[i] for i in at),
            labels=labels,
        )

    def contents(self) -> list[str]:
        """One string a row, equal for rows of equal texts or words."""
        if self.words is not None:
            return [json.dumps(x) for x in self.words]
        # As json.dumps([a, b]), but several times as fast.
        if self.text_b is None:
            return [f"[{json.dumps(a)}]" for a in self.text_a]
        pairs = zip(self.text_a, self.text_b, strict=True)
        return [f"[{json.dumps(a)}, {json.dumps(b)}]" for a, b in pairs]

    def digest(self) -> str:
        """SHA-256 of texts and labels, in hex."""
        return _sha256([*self.contents(), json.dumps(_plain(self.labels))])


@dataclass(frozen=True)
class Splits:
    """Rows by role.

    Weights and importance are computed on `fit`, candidates are compared on `select`, the
    budget is certified on `certify`, and the report shows scores on `test`.
    """

    fit: Rows
    select: Rows
    certify: Rows
    test: Rows | None
    notes: tuple[str, ...]
    """How the rows got their roles, in words."""

    def digest(self) -> str:
        """SHA-256 of all roles, in hex."""
        roles = (self.fit, self.select, self.certify, self.test)
        return _sha256(["" if x is None else x.digest() for x in roles])


def _sha256(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        raw = text.encode()
        digest.update(len(raw).to_bytes(8, "little") + raw)
    return digest.hexdigest()


def _plain(labels: Labels | None) -> Any:
    if isinstance(labels, tuple):
        return [x.tolist() for x in labels]
    return None if labels is None else labels.tolist()


def read_rows(
    source: str | Path | Sequence[Path],
    task: Task,
    columns: Mapping[str, str] | None = None,
    split: str | None = None,
    labels: Mapping[str, str] | None = None,
) -> Rows:
    """Read one split.

    Args:
        source: a file, the shards of one split, a folder, or a hub id (`name` or
            `owner/name`, with `:config` where the data set has several).
        task: which labels are expected.
        columns: for keys of `known_columns` the names that the file uses instead.
        split: which split of a folder or hub data set, `train` where not given.
        labels: what values of the label column mean, see `LabelMap`.

    Returns:
        The rows; unlabelled where there is no label column or each label is empty or -1.

    Raises:
        DataError: the file cannot be read or does not fit the task.
        MissingError: a hub id, and the `datasets` library is not installed.
    """
    named = {"text_a" if k == "text" else k: v for k, v in (columns or {}).items()}
    known = known_columns()
    for key in named.keys() - set(known):
        raise DataError(f"--columns {key}=... is unknown; these are known: {', '.join(known)}")
    chosen = LabelMap(labels or {}, task.labels)
    return _rows(_table(source, named, split), task, named, chosen)


def known_columns() -> tuple[str, ...]:
    """Names of columns that some task reads, and that `--columns` may rename."""
    names = ["text_a", "text_b"]
    for task in task_types():
        names += ["tokens"] * task.reads_words + [*task.columns]
    return tuple(dict.fromkeys(names))


def read_texts(
    source: str | Path | Sequence[Path], task: Task, split: str | None = None
) -> Rows:
    """Read the texts, or words, of one split under their usual names, without labels.

    Arguments and errors are those of `read_rows`.
    """
    return _unlabelled(_table(source, {}, split), task)


def _table(
    source: str | Path | Sequence[Path],
    named: Mapping[str, str],
    split: str | None,
) -> Table:
    """The columns of one split that a task may read."""
    wanted = {*named.values(), *_SINGLES, *(x for p in _PAIRS for x in p), *known_columns()}
    wanted |= {x for task in task_types() for x in task.other_columns}
    if not isinstance(source, str | Path):
        return joined([read_file(x, wanted) for x in source])
    path, split = Path(source), split or "train"
    if path.is_dir():
        files = find_files(path)
        if split not in files:
            raise DataError(f"{path} has no '{split}' file; it has: {listed(files)}")
        return _table(files[split], named, None)
    if path.is_file() or isinstance(source, Path) or not is_hub_id(source):
        return read_file(path, wanted)
    found = hub_splits(source)
    if split not in found:
        raise DataError(f"{source} has no '{split}' split; it has: {listed(found)}")
    return hub_table(f"{source} {split}", found[split], wanted)


def _texts(table: Table, name: str) -> tuple[str, ...]:
    for i, x in enumerate(table.columns[name]):
        if x is None:
            table.fail(i, f"'{name}' is empty: fill it in or remove the row")
        if not isinstance(x, str):
            table.fail(
                i, f"'{name}' is {x!r:.40} ({type(x).__name__}), not text: write a string"
            )
        if not x.isascii() and any("\ud800" <= c <= "\udfff" for c in x):
            table.fail(i, f"'{name}' holds half a character (a lone surrogate): remove it")
    return tuple(table.columns[name])


def _words(table: Table, name: str) -> tuple[tuple[str, ...], ...]:
    for i, x in enumerate(table.columns[name]):
        if not isinstance(x, list) or not x or not all(isinstance(w, str) for w in x):
            table.fail(i, f"'{name}' is {x!r:.40}, not a list of words: use jsonl or parquet")
    return tuple(tuple(x) for x in table.columns[name])


def _text_columns(table: Table, named: Mapping[str, str] | None) -> tuple[str, str | None]:
    cure = "say which to use: --columns text_a=NAME (and text_b=NAME for pairs)"
    if named is None:
        named, cure = {}, "keep one, named 'text' (for pairs two: 'text_a' and 'text_b')"
    if "text_a" in named:
        return named["text_a"], named.get("text_b")
    found: list[tuple[str, str | None]] = [p for p in _PAIRS if set(p) <= set(table.names)]
    paired = {x for p in found for x in p}
    found += [(x, None) for x in _SINGLES if x in table.names and x not in paired]
    if "text_b" in named:
        found = [(x, named["text_b"]) for x in _SINGLES if x in table.names]
    if len(found) != 1:
        what = "no text column" if not found else "more than one candidate for the text"
        table.fail(
            None,
            f"{what}; the columns are: {listed(table.names)}\n{cure}",
        )
    return found[0]


def _all_empty(table: Table, name: str) -> bool:
    """Whether a column holds no value, as the label column of many a test split."""
    return all(x is None for x in table.columns[name])


def _unlabelled(table: Table, task: Task, named: Mapping[str, str] | None = None) -> Rows:
    """Rows without labels; `named` is None where the user cannot name columns."""
    if task.reads_words:
        tokens = (named or {}).get("tokens", "tokens")
        if tokens not in table.names:
            cure = "name it 'tokens'"
            if named is not None:
                cure = "say which to use: --columns tokens=NAME tags=NAME"
            text = f"no column 'tokens'; the columns are: {listed(table.names)}\n"
            table.fail(None, text + cure)
        return Rows((), words=_words(table, tokens))
    a, b = _text_columns(table, named)
    return Rows(_texts(table, a), None if b is None else _texts(table, b))


def _rows(table: Table, task: Task, named: Mapping[str, str], chosen: LabelMap) -> Rows:
    for key, name in named.items():
        if name not in table.names:
            text = f"no column '{name}' (--columns {key}={name}); the columns are: "
            table.fail(None, text + listed(table.names))

    renamed = [named[k] for k in task.columns if k in named]
    names = renamed or [*task.columns, *task.other_columns]
    label = next((x for x in names if x in table.names), None)
    rows = _unlabelled(table, task, named)
    if label is None or _all_empty(table, label):
        return rows
    return _labelled(table, label, rows, task, chosen)


def _labelled(table: Table, name: str, rows: Rows, task: Task, chosen: LabelMap) -> Rows:
    values, classes = table.columns[name], table.classes.get(name, ())
    if not task.has_classes:
        return replace(rows, labels=task.read_labels(values, rows.words, table.fail))
    resolve = resolved if rows.words is None else resolved_tags
    found = resolve(values, classes, chosen, table.fail)
    labels = task.read_labels(found.values, rows.words, table.fail)
    return replace(rows, labels=labels, notes=found.notes, labels_used=found.used)
