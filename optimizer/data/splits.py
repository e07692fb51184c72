"""Give rows their roles: fit, select, certify and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.metrics import AGREEMENT
from prumux.optimizer.tasks.registry import of_data
from prumux.optimizer.tasks.task import Task

from .files import find_files, unused_files
from .formats import MIN_ROWS
from .hub import hub_splits, is_hub_id
from .label_names import unused
from .names import SPLITS
from .retrieval import is_retrieval, retrieval_splits
from .rows import Rows, Splits, column_names, read_rows

MAX_SELECT_ROWS = 2048
NOT_NEEDED = "--certify-on-train: not used, validation rows certify"
ON_TRAIN = (
    "certified on rows of the train split, which a model knows by heart: "
    "it may lose more on new texts"
)


@dataclass(frozen=True)
class Sources:
    """The sources of the splits."""

    splits: Mapping[str, Any]
    """Argument `source` of `read_rows`, by split."""
    unused: tuple[str, ...] = ()
    """A line for each file or hub split that is not used."""
    moved: Mapping[str, str] = field(default_factory=dict)
    """The hub split to read instead of the split's own, by split."""

    def shown(self, split: str) -> str:
        """The file, folder or hub id of a split, for messages."""
        source = self.splits[split]
        return str(source[0] if isinstance(source, tuple) else source)


def load_splits(  # noqa: PLR0917 - the options of the command line, one by one
    data: str | None,
    train: str | Path | None,
    validation: str | Path | None,
    test: str | Path | None,
    beside: Path | None,
    task: Task,
    columns: Mapping[str, str] | None = None,
    seed: int = 0,
    labels: Mapping[str, str] | None = None,
    metric: str | None = None,
    certify_on_train: bool = False,
) -> Splits:
    """Read the data and assign its rows to roles.

    Args:
        data: a folder (see `find_files`) or a hub id (see `read_rows`).
        train, validation, test: files; each replaces the same split of `data`. If
            `validation` is `test`, the test split of `data` certifies.
        beside: the model's file or folder. Its data files are read if no other data is given.
        task, columns, labels: see `read_rows`.
        seed: the seed for drawing the rows of each role. The order in the file has no
            influence.
        metric: the metric that the user chose; `agreement` needs no labels.
        certify_on_train: True if rows of the train split may certify.

    Raises:
        DataError: there is no data, a file is wrong, no rows may certify, or a role has fewer
            than 8 rows.
        MissingError: `data` is a hub id, and the `datasets` library is not installed.
    """
    folder = Path(data) if data else beside
    if task.retrieves and folder is not None and is_retrieval(folder):
        if train is not None or test is not None or str(validation or "test") != "test":
            raise DataError(
                f"{folder} holds queries, documents and judgements, whose splits are in "
                "qrels/\nleave --train, --validation FILE and --test out"
            )
        return retrieval_splits(folder, task, seed, None if validation is None else "test")
    sources = _sources(data, {"train": train, "validation": validation, "test": test}, beside)
    task, notes = _task_on(sources, task, columns or {}, metric)
    rows = {
        k: read_rows(v, task, columns, sources.moved.get(k, k), labels)
        for k, v in sources.splits.items()
    }
    for key in unused(labels or {}, [x.labels_used for x in rows.values()]):
        raise DataError(
            f"--labels {key}={(labels or {})[key]}: no row has the label '{key}'; "
            f"the model's classes are: {', '.join(task.labels[:8])}"
        )
    task = task.on_labels(x.labels for x in rows.values())
    _same_kind(rows, sources)
    single = task.scores_pairs and all(x.text_b is None for x in rows.values())
    usable, fallbacks = _usable(rows, metric == AGREEMENT, "" if single else task.columns[0])
    warnings = [*sources.unused, *fallbacks, *_left_out(rows)]
    if certify_on_train and usable.keys() & {"train", "validation"}:
        warnings.append(NOT_NEEDED if "validation" in usable else ON_TRAIN)
    elif "validation" not in usable:
        raise DataError(_cure(rows, usable, sources))
    splits = assign(usable, seed)
    notes += dict.fromkeys(note for x in rows.values() for note in x.notes)
    return replace(
        splits,
        notes=(*splits.notes, *notes, *_unused_columns(rows)),
        warnings=tuple(warnings),
        task=task,
    )


def _task_on(
    sources: Sources, task: Task, columns: Mapping[str, str], metric: str | None
) -> tuple[Task, list[str]]:
    """The task on this data, and a line if it differs from the task of the model's config."""
    split = next(iter(sources.splits))

    def names() -> tuple[str, ...]:
        read = column_names(sources.splits[split], sources.moved.get(split, split))
        return (*read, *columns)

    found = of_data(task, names, metric)
    if found is task:
        return task, []
    return found, [
        f"task: {found.name}, scored by query; to compare the scores of all rows with each "
        f"other: --metric {task.default_metric}"
    ]


def _sources(
    data: str | None, given: Mapping[str, str | Path | None], beside: Path | None
) -> Sources:
    """The files, or the hub data set, of each split."""
    files: dict[str, Any] = {k: Path(v) for k, v in given.items() if v is not None}
    named = str(given["validation"]) == "test" and "test" not in files
    folder = Path(data) if data else None
    if folder is None and not files and beside is not None:
        folder = beside if beside.is_dir() else beside.parent
    hub = data is not None and not Path(data).exists() and is_hub_id(data)
    lines: list[str] = []
    if hub:
        assert data is not None
        splits, others = hub_splits(data, files)
        lines += others
        files = {k: data for k in splits if k in given} | files
    elif folder is not None:
        lines += unused_files(folder, files)
        files = dict(find_files(folder, files)) | files
    moved = {}
    if named and "test" in files and not Path("test").is_file():
        files["validation"] = files.pop("test")
        moved = {"validation": "test"} if hub else {}
        lines.append("the rows of the test split certify, as --validation test says")
    if not files:
        where = f"{folder} holds no data" if folder else "no data is given"
        unread = f"\n{'; '.join(lines[:4])}" if lines else ""
        raise DataError(
            f"{where}: use --data DIR with train.* and validation.* "
            f"(parquet, jsonl, csv, tsv),\nor --train FILE --validation FILE{unread}"
        )
    return Sources({k: files[k] for k in SPLITS if k in files}, tuple(lines), moved)


def _same_kind(rows: Mapping[str, Rows], sources: Sources) -> None:
    """Refuse data in which one split has pairs and another has single texts."""
    pairs = [k for k, v in rows.items() if v.text_b is not None]
    singles = [k for k, v in rows.items() if v.text_b is None]
    if pairs and singles:
        a, b = pairs[0], singles[0]
        raise DataError(
            f"{sources.shown(a)} has pairs of texts, {sources.shown(b)} has single texts\n"
            "say which columns to use: --columns text_a=NAME (and text_b=NAME for pairs)"
        )


def _usable(
    rows: Mapping[str, Rows], agreement: bool, label: str
) -> tuple[dict[str, Rows], tuple[str, ...]]:
    """The splits that can be scored, and a line for each that cannot.

    Args:
        rows: by split.
        agreement: True if the metric is agreement, which needs no labels.
        label: the key of `--columns` for the labels; "" = the task reads no label column.
    """
    if agreement:
        return dict(rows), ()
    labelled = {k: v for k, v in rows.items() if v.labels is not None}
    if labelled:
        return labelled, tuple(
            f"{k}: not used, {v.unlabelled}" for k, v in rows.items() if k not in labelled
        )
    split, first = next(iter(rows.items()))
    cure = f"; if a column holds the labels: --columns {label}=NAME, else --metric agreement"
    cure = cure if label else ""
    return dict(rows), (
        f"{split}: {first.unlabelled}: the budget is on agreement with the given model{cure}",
    )


def _left_out(rows: Mapping[str, Rows]) -> list[str]:
    return [f"{k}: {v.skipped}" for k, v in rows.items() if v.skipped]


def _unused_columns(rows: Mapping[str, Rows]) -> list[str]:
    """A line for each group of splits that have the same unused columns."""
    splits: dict[tuple[str, ...], list[str]] = {}
    for split, found in rows.items():
        splits.setdefault(found.unused, []).append(split)
    return [
        f"columns not used: {', '.join(x)} ({', '.join(k)})" for x, k in splits.items() if x
    ]


def _cure(rows: Mapping[str, Rows], usable: Mapping[str, Rows], sources: Sources) -> str:
    """The message for data without rows that may certify, at most five lines."""
    if "validation" in rows:
        why = f"{sources.shown('validation')}: {rows['validation'].unlabelled}"
        cures = [
            "give the column of labels the name that it has in the other splits, "
            "or do without labels: --metric agreement"
        ]
    else:
        names = " and ".join(f"{k} ({len(v)} rows)" for k, v in rows.items())
        why = f"no validation rows to certify on, only {names}"
        cures = [
            "a model knows its training rows by heart, and test rows are for the report only",
            "give rows that the model was not trained on: --validation FILE",
        ]
        if "test" in usable:
            cures[-1] += ", or those of the test split: --validation test"
        if sources.unused:
            cures.append(f"({'; '.join(sources.unused[:2])})")
    if "train" in usable:
        cures.append("or certify on rows of the train split all the same: --certify-on-train")
    return "\n".join([why, *cures])


def assign(rows: Mapping[str, Rows], seed: int = 0) -> Splits:
    """Assign rows of `train`, `validation` and `test` to the roles of `Splits`.

    Rows of `validation` certify. If `validation` or `train` is missing, half of the rows of
    the other split certify.

    Raises:
        DataError: a role has fewer than 8 rows.
    """
    notes: list[str] = []
    name = "train" if "train" in rows else "validation"
    pool, test = rows[name], rows.get("test")
    contents = _units(pool)
    order = _order(contents, seed)
    n = len(pool)
    if "train" in rows and "validation" in rows:
        select_rows = min(MAX_SELECT_ROWS, n // 4)
        fit_rows = _whole(pool, n - select_rows, order)
        sizes, certify = (fit_rows, n - fit_rows), rows["validation"]
        notes.append(f"fit and select: {sizes[0]} and {sizes[1]} random rows of train")
        notes.append(f"certify: validation ({_size(certify)})")
    else:
        first, second = (_whole(pool, i * (n // 4), order) for i in (1, 2))
        sizes, certify = (first, second - first), pool.take(order[second:])
        notes.append(f"fit, select and certify: 25, 25 and 50 % of {name} ({_size(pool)})")
    if test is not None:
        notes.append(f"test: test ({_size(test)}), for the report only")
    certify, again = _distinct(certify)
    if again:
        notes.append(f"dropped {again} rows from certify: they repeat another row of it")
    held = {*_units(certify), *(_units(test) if test else ())}
    fit_at, select_at = (
        [i for i in part if contents[i] not in held]
        for part in (order[: sizes[0]], order[sizes[0] : sum(sizes)])
    )
    fit, select = pool.take(fit_at), pool.take(select_at)
    dropped = sizes[0] - len(fit), sizes[1] - len(select)
    if any(dropped):
        notes.append(
            f"dropped {dropped[0]} rows from fit and {dropped[1]} from select: "
            "their text is also in certify or test"
        )
    _enough({"fit": fit, "select": select, "certify": certify, "test": test}, notes)
    for role, some in {"select": select, "certify": certify}.items():
        queries = MIN_ROWS if some.groups is None else len(set(some.groups.tolist()))
        if queries < MIN_ROWS:
            raise DataError(
                f"{role} has {queries} queries, {MIN_ROWS} are needed: give more data\n"
                f"({'; '.join(notes)})"
            )
    return Splits(fit, select, certify, test, tuple(notes))


def _units(rows: Rows) -> list[str]:
    """One string a row, equal for rows that must have the same role.

    Such rows have equal texts, or belong to the same query. Queries are compared by text,
    because two files may number them differently.
    """
    if rows.groups is None:
        return rows.contents()
    first = {
        int(g): text for g, text in reversed([*zip(rows.groups, rows.text_a, strict=True)])
    }
    return [first[int(g)] for g in rows.groups]


def _whole(rows: Rows, cut: int, order: Sequence[int]) -> int:
    """The first place at or after `cut` that does not separate rows of one query."""
    units = None if rows.groups is None else _units(rows)
    while (
        units is not None
        and 0 < cut < len(order)
        and units[order[cut]] == units[order[cut - 1]]
    ):
        cut += 1
    return cut


def _size(rows: Rows) -> str:
    """The number of rows and queries, for messages."""
    queries = "" if rows.groups is None else f" of {len(set(rows.groups.tolist()))} queries"
    return f"{len(rows)} rows{queries}"


def _distinct(rows: Rows) -> tuple[Rows, int]:
    """The rows without repetitions, and the number of dropped rows.

    Repeated rows are no independent evidence.
    """
    first = {text: i for i, text in reversed(list(enumerate(rows.contents())))}
    return rows.take(sorted(first.values())), len(rows) - len(first)


def _order(contents: Sequence[str], seed: int) -> list[int]:
    hashes = [hashlib.sha256(f"{seed} {x}".encode()).digest() for x in contents]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def _enough(roles: Mapping[str, Rows | None], notes: Sequence[str]) -> None:
    for role, rows in roles.items():
        if rows is not None and len(rows) < MIN_ROWS:
            raise DataError(
                f"{role} has {len(rows)} rows, {MIN_ROWS} are needed: give more data\n"
                f"({'; '.join(notes)})"
            )
