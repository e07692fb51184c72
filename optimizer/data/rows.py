"""Rows of text, words and labels, read from the columns of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.label_lists import label_lists
from prumux.optimizer.tasks.labels import Fail, Labels, integer
from prumux.optimizer.tasks.task import Task

from .class_names import beside
from .columns import (
    Columns,
    checked,
    find_columns,
    label_names,
    wanted_columns,
)
from .files import find_files
from .formats import read_file
from .hub import hub_splits, hub_table, is_hub_id
from .kept import keep, label_values, missing
from .label_names import LabelMap, resolved, resolved_tags
from .names import folded
from .queries import queries_of, without
from .table import Table, check_characters, joined, listed
from .zeros_and_ones import with_zeros_and_ones


@dataclass(frozen=True, eq=False)
class Rows:
    """Texts, pairs of texts or lists of words, with or without labels."""

    text_a: tuple[str, ...]
    text_b: tuple[str, ...] | None = None
    words: tuple[tuple[str, ...], ...] | None = None
    """The words of each row, for tasks that read words. For these tasks `text_a` is empty."""
    labels: Labels | None = None
    """Labels from `Task.read_labels`; None = unlabelled."""
    notes: tuple[str, ...] = ()
    """Messages about how label values were read."""
    labels_used: frozenset[str] = frozenset()
    """Keys of `--labels` that occurred."""
    unlabelled: str = ""
    """The reason for missing labels, as in "it has no labels (...)"; "" = there are labels."""
    unused: tuple[str, ...] = ()
    """Columns that are not used."""
    skipped: str = ""
    """Number of rows that are left out, and the reason; "" = none."""
    groups: NDArray[np.int64] | None = None
    """The number of each row's query, [N], for tasks that score queries."""
    corpus: tuple[str, ...] | None = None
    """The documents that every query searches; None = the rows do not search documents."""
    own: tuple[int, ...] = ()
    """Index of the document that is the query itself, for each query; -1 = none."""
    stride: int | None = None
    """Number of tokens that two windows of a context share.

    0 = chosen from the window's length; None = the rows have no contexts."""

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
            groups=None if self.groups is None else self.groups[np.array(at, dtype=np.int64)],
            corpus=self.corpus,
            own=tuple(self.own[i] for i in at) if self.own else (),
            labels=labels,
            stride=self.stride,
        )

    def contents(self) -> list[str]:
        """One string a row, equal for rows of equal texts or words."""
        if self.words is not None:
            return [json.dumps(x) for x in self.words]
        # The same text as json.dumps([a, b]), several times as fast.
        if self.text_b is None:
            return [f"[{json.dumps(a)}]" for a in self.text_a]
        pairs = zip(self.text_a, self.text_b, strict=True)
        return [f"[{json.dumps(a)}, {json.dumps(b)}]" for a, b in pairs]

    def digest(self) -> str:
        """SHA-256 of texts and labels, in hex."""
        parts = [*self.contents(), json.dumps(_plain(self.labels)), *(self.corpus or ())]
        groups = [] if self.groups is None else [json.dumps(self.groups.tolist())]
        windows = [] if self.stride is None else [f"windows share {self.stride}"]
        return _sha256([*parts, *groups, *windows])


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
    """Messages about the origin of the rows of each role."""
    warnings: tuple[str, ...] = ()
    """Messages about unused inputs, rows that are left out, and replacements."""
    task: Task | None = None
    """The task, with facts that only the data shows; None = the task of the config."""

    def by_role(self) -> dict[str, Rows]:
        """The rows of each role; without `test` if there are no test rows."""
        roles = {"fit": self.fit, "select": self.select, "certify": self.certify}
        return roles if self.test is None else {**roles, "test": self.test}

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
    """Read one split and skip rows without text.

    Args:
        source: a file, the shards of one split, a folder, or a hub id (`owner/name`, or
            `owner/name:config` for one of several configurations).
        task: the task that reads the labels.
        columns: the file's own column names, by keys of `known_columns`.
        split: the split of a folder or hub data set; None = `train`. Labels of `test` may be
            missing or all the same. Such rows are returned without labels.
        labels: the meaning of values of the label column, see `LabelMap`.

    Returns:
        The rows. They are unlabelled if all labels are missing, empty or -1. Otherwise rows
        without a label are skipped, too.

    Raises:
        DataError: the file cannot be read or does not fit the task.
        MissingError: `source` is a hub id, and the `datasets` library is not installed.
    """
    named = checked(columns or {}, task)
    chosen = LabelMap(labels or {}, task.labels)
    table = _table(source, wanted_columns(named, task), split)
    found = find_columns(table, task, named, optional_label=split == "test")
    table, found = with_zeros_and_ones(table, found)
    kept = keep(table, found, task, chosen, split == "test")
    rows = replace(
        _unlabelled(kept.table, found, task),
        unused=found.unused(table),
        skipped=kept.skipped,
        unlabelled=kept.unlabelled,
    )
    if task.group_columns:
        rows = replace(rows, groups=queries_of(kept.table, found.group, rows.text_a))
    if found.label is None or kept.unlabelled:
        if task.scores_pairs and rows.text_b is None:
            return replace(rows, unlabelled="its rows are single texts, and pairs have scores")
        shown = f"no column {label_names(task)}; its columns are: {listed(table.names)}"
        return replace(rows, unlabelled=kept.unlabelled or f"it has no labels ({shown})")
    rows = _labelled(kept.table, found.label, rows, task, chosen)
    if found.each:
        note = f"labels: 0 or 1 in {len(found.each)} columns: {found.label}"
        rows = replace(rows, notes=(note, *rows.notes))
    return rows if rows.groups is None or rows.labels is None else _judged(rows, task)


def _judged(rows: Rows, task: Task) -> Rows:
    """Leave out queries that the metric cannot score, because no passage is relevant."""
    assert rows.groups is not None
    assert rows.labels is not None
    labels = task.with_groups(rows.labels, rows.groups)
    told = task.telling_rows(labels)
    if told.all():
        return replace(rows, labels=labels)
    left = replace(rows, labels=labels).take(np.flatnonzero(told))
    line = without(rows.groups[~told])
    skipped = f"{rows.skipped}; {line}" if rows.skipped else line
    return replace(
        rows,
        text_a=left.text_a,
        text_b=left.text_b,
        groups=left.groups,
        labels=left.labels,
        skipped=skipped,
    )


def read_texts(
    source: str | Path | Sequence[Path], task: Task, split: str | None = None
) -> Rows:
    """Read the texts or words of one split, without labels. Columns need usual names.

    Arguments and errors are the same as in `read_rows`.
    """
    table = _table(source, wanted_columns({}, task), split)
    found = find_columns(table, task, None)
    kept = keep(table, found, task, LabelMap({}, task.labels))
    return _unlabelled(kept.table, found, task)


def column_names(source: str | Path | Sequence[Path], split: str | None) -> tuple[str, ...]:
    """The names of the columns of one split; arguments and errors as in `read_rows`."""
    return _table(source, set(), split).names


def _table(source: str | Path | Sequence[Path], wanted: set[str], split: str | None) -> Table:
    """The columns of one split that a task may read."""
    if not isinstance(source, str | Path):
        return joined([read_file(x, wanted) for x in source])
    path, split = Path(source), split or "train"
    if path.is_dir():
        files = find_files(path)
        if len(files) == 1 and (path / "state.json").is_file():
            split = next(iter(files))  # the only split of `save_to_disk` replaces any other
        if split not in files:
            raise DataError(f"{path} has no '{split}' file; it has: {listed(files)}")
        return _table(files[split], wanted, None)
    if path.is_file() or isinstance(source, Path) or not is_hub_id(source):
        return read_file(path, wanted)
    found, _ = hub_splits(source)
    if split not in found:
        raise DataError(f"{source} has no '{split}' split; it has: {listed(found)}")
    return hub_table(f"{source} {split}", found[split], wanted)


def _unlabelled(table: Table, columns: Columns, task: Task) -> Rows:
    if task.reads_words:
        return Rows((), words=_words(table, columns.first))
    first = _texts(table, columns.first, pair=columns.second is not None)
    if columns.second is None:
        return Rows(task.prompted(first))
    second = _texts(table, columns.second, pair=True)
    return Rows(task.prompted(first), task.prompted(second), stride=task.shared_tokens)


def _texts(table: Table, name: str, pair: bool) -> tuple[str, ...]:
    """The texts of a column. In pairs, one of the two texts may be empty."""
    values = table.columns[name]
    if pair:
        values = ["" if missing(x) else x for x in values]
    for i, x in enumerate(values):
        if not isinstance(x, str):
            table.fail(
                i, f"'{name}' is {x!r:.40} ({type(x).__name__}), not text: write a string"
            )
        check_characters(table, i, name, x)
    return tuple(values)


def _words(table: Table, name: str) -> tuple[tuple[str, ...], ...]:
    for i, x in enumerate(table.columns[name]):
        if not isinstance(x, list) or not x or not all(isinstance(w, str) for w in x):
            table.fail(i, f"'{name}' is {x!r:.40}, not a list of words: use jsonl or parquet")
        for word in x:
            check_characters(table, i, name, word)
    return tuple(tuple(x) for x in table.columns[name])


def _labelled(table: Table, name: str, rows: Rows, task: Task, chosen: LabelMap) -> Rows:
    values = table.columns[name]

    def fail(row: int | None, text: str) -> NoReturn:
        table.fail(row, text if name in text else f"column '{name}': {text}")

    if not task.has_classes:
        words = rows.text_b if task.finds_spans else rows.words
        return replace(rows, labels=task.read_labels(values, words, fail))
    if task.lists_labels:
        return _listed(table, name, rows, task, chosen, fail)
    if rows.words is None:
        values = label_values(values, task.labels, fail)
    classes = table.classes.get(folded(name), ()) or _card_classes(table, name, values)
    resolve = resolved if rows.words is None else resolved_tags
    found = resolve(values, classes, chosen, fail)
    labels = task.read_labels(found.values, rows.words, fail)
    return replace(rows, labels=labels, notes=found.notes, labels_used=found.used)


def _listed(  # noqa: PLR0917 - as `_labelled`
    table: Table, name: str, rows: Rows, task: Task, chosen: LabelMap, fail: Fail
) -> Rows:
    """Add the labels of a task with a list of labels for each row."""
    classes = table.classes.get(folded(name), ())
    read = label_lists(table.columns[name], task.labels, {*chosen.pairs, *classes}, fail)
    if read.settled:
        labels = task.read_labels(read.lists, rows.words, fail)
        return replace(rows, labels=labels, notes=read.notes)
    classes = classes or _card_classes(table, name, read.lists)
    found = resolved_tags(read.lists, classes, chosen, fail)
    labels = task.read_labels(found.values, rows.words, fail)
    notes = (*read.notes, *found.notes)
    return replace(rows, labels=labels, notes=notes, labels_used=found.used)


def _card_classes(table: Table, name: str, values: Sequence[Any]) -> tuple[str, ...]:
    """Class names from a file beside the data, for a column of whole numbers."""
    file = Path(table.parts[0][0])
    flat = [y for x in values for y in (x if isinstance(x, list) else [x])]
    if not file.is_file() or any(integer(x) is None for x in flat):
        return ()
    return beside(file).get(folded(name), ())
