"""Give rows their roles: fit, select, certify and test."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.task import Task

from .files import MIN_ROWS, find_files, hub_splits, is_hub_id, listed
from .label_names import unused
from .rows import Rows, Splits, read_rows

MAX_SELECT_ROWS = 2048


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
) -> Splits:
    """Read the data that is given and assign its rows to roles.

    Args:
        data: a folder (see `find_files`) or a hub id (see `read_rows`).
        train, validation, test: files; each wins over the same split of `data`.
        beside: the model's file or folder; its data files are read if nothing else is given.
        task, columns, labels: see `read_rows`.
        seed: draws the parts of a file that get different roles; row order has no influence.

    Raises:
        DataError: nothing is given, a file is wrong, or a role has fewer than 8 rows.
        MissingError: a hub id, and the `datasets` library is not installed.
    """
    given = {"train": train, "validation": validation, "test": test}
    sources: dict[str, Any] = {k: Path(v) for k, v in given.items() if v is not None}
    folder = Path(data) if data else None
    if folder is None and not sources and beside is not None:
        folder = beside if beside.is_dir() else beside.parent
    # A bare name is more likely a folder that is misspelt than a data set of the hub.
    hub = data is not None and "/" in data and not Path(data).exists() and is_hub_id(data)
    if hub:
        assert data is not None
        sources = {k: data for k in hub_splits(data) if k in given} | sources
    elif folder is not None:
        sources = dict(find_files(folder)) | sources
    rows = {k: read_rows(v, task, columns, k, labels) for k, v in sources.items()}
    if not rows:
        where = f"{folder} holds no data" if folder else "no data is given"
        raise DataError(
            f"{where}: use --data DIR with train.* and validation.* "
            "(parquet, jsonl, csv, tsv),\nor --train FILE --validation FILE"
        )
    splits = assign(rows, seed)
    for key in unused(labels or {}, [x.labels_used for x in rows.values()]):
        raise DataError(
            f"--labels {key}={(labels or {})[key]}: no row has the label '{key}'; "
            f"the model's classes are: {', '.join(task.labels[:8])}"
        )
    notes = dict.fromkeys(note for x in rows.values() for note in x.notes)
    return replace(splits, notes=(*splits.notes, *notes))


def assign(rows: Mapping[str, Rows], seed: int = 0) -> Splits:
    """Assign rows of `train`, `validation` and `test` to the roles of `Splits`."""
    notes: list[str] = []
    labelled = {k: v for k, v in rows.items() if v.labels is not None}
    if labelled and len(labelled) < len(rows):
        notes.append(f"{listed(rows.keys() - labelled)}: not used, it has no labels")
    if not labelled:
        notes.append("no labels: the budget is on agreement with the given model")
    left = [k for k in ("train", "validation", "test") if k in (labelled or rows)]
    pool, rest = rows[left[0]], left[1:]
    contents = pool.contents()
    order = _order(contents, seed)
    n = len(pool)
    if not rest:
        sizes = (n // 4, n // 4)
        certify, test = pool.take(order[2 * (n // 4) :]), None
        notes.append(f"fit, select and certify: 25, 25 and 50 % of {left[0]} ({n} rows)")
    else:
        select_rows = min(MAX_SELECT_ROWS, n // 4) if left[0] == "train" else n // 2
        sizes = (n - select_rows, select_rows)
        certify, test = rows[rest[0]], rows[rest[1]] if rest[1:] else None
        notes.append(f"fit and select: {sizes[0]} and {sizes[1]} random rows of {left[0]}")
        notes.append(f"certify: {rest[0]} ({len(certify)} rows)")
        if test is not None:
            notes.append(f"test: {rest[1]} ({len(test)} rows), for the report only")
    certify, again = _distinct(certify)
    if again:
        notes.append(f"dropped {again} rows from certify: they repeat another row of it")
    held = {*certify.contents(), *(test.contents() if test else ())}
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
    return Splits(fit, select, certify, test, tuple(notes))


def _distinct(rows: Rows) -> tuple[Rows, int]:
    """Drop repeated rows, which are no independent evidence; and how many were dropped."""
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
