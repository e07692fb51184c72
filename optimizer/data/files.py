"""Read tables from files (parquet, jsonl, csv, tsv) and from data sets of the hub.

Reading executes no code of a data file. Row numbers in messages count from 1, without the
header.
"""

from __future__ import annotations

import csv
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from prumux.optimizer.base import git_lfs
from prumux.optimizer.base.errors import DataError, MissingError

from .label_names import class_names

FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".tsv")
MIN_ROWS = 8
"""Smallest number of rows of a role."""

_SPLIT_NAMES = {"dev": "validation", "valid": "validation"}
_FILE = re.compile(
    r"(train|validation|valid|dev|test)(?:-(\d{5})-of-(\d{5})(?:-[0-9a-f]+)?)?"
    r"\.(?:parquet|jsonl|json|csv|tsv)"
)
_HUB_ID = re.compile(r"[\w.-]+(?:/[\w.-]+)?(?::[\w.-]+)?")


@dataclass(frozen=True, eq=False)
class Table:
    """The columns of one split."""

    parts: tuple[tuple[str, int], ...]
    """Names and numbers of rows of the files that it was read from."""
    names: tuple[str, ...]
    columns: Mapping[str, Sequence[Any]]
    """The values of the columns that were asked for; None = null."""
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """By column the data's own names of classes, in the order of their ids."""

    @property
    def title(self) -> str:
        """Its name in messages."""
        return self.parts[0][0] + (f" (+ {len(self.parts) - 1})" if self.parts[1:] else "")

    def fail(self, row: int | None, text: str) -> NoReturn:
        """Raise DataError for a row, counted from 0, or for the whole table (None)."""
        if row is None:
            raise DataError(f"{self.title}: {text}")
        for name, rows in self.parts:
            if row < rows:
                raise DataError(f"{name}, row {row + 1}: {text}")
            row -= rows
        raise IndexError(row)


def find_files(folder: Path) -> dict[str, tuple[Path, ...]]:
    """Find the files of each split in `folder` and `folder/data`: one file, or all its shards.

    Raises:
        DataError: no such folder, two files for one split, or a shard is missing.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder: give one that holds train.*, validation.*")
    found: dict[str, list[Path]] = {}
    counts: dict[str, int] = {}
    for path in sorted([*folder.iterdir(), *folder.glob("data/*")]):
        name = _FILE.fullmatch(path.name)
        if name is None or not path.is_file():
            continue
        split = _SPLIT_NAMES.get(name[1], name[1])
        found.setdefault(split, []).append(path)
        counts[split] = max(counts.get(split, 1), int(name[3] or 1))
    for split, paths in found.items():
        if len(paths) > counts[split]:
            raise DataError(
                f"{folder} holds both {paths[0].name} and {paths[1].name}: "
                f"keep one, or name it with --{split} {paths[0]}"
            )
        if len(paths) < counts[split]:
            raise DataError(
                f"{folder}: {len(paths)} of {counts[split]} shards of '{split}' are there: "
                "fetch the others"
            )
    return {split: tuple(paths) for split, paths in found.items()}


def is_hub_id(text: str) -> bool:
    """Whether a text may name a data set: `name`, `owner/name`, or either with `:config`."""
    return _HUB_ID.fullmatch(text) is not None and Path(text).suffix not in FORMATS


def listed(names: Iterable[str]) -> str:
    """Sorted names for a message."""
    return ", ".join(sorted(names)) or "none"


def joined(tables: Sequence[Table]) -> Table:
    """Join the shards of one split, in order.

    Raises:
        DataError: the shards' columns differ.
    """
    first = tables[0]
    for table in tables:
        if table.names != first.names:
            raise DataError(
                f"{table.title} has columns {listed(table.names)}; {first.title} has "
                f"{listed(first.names)}: the shards of one split must agree"
            )
    merged = {k: [v for x in tables for v in x.columns[k]] for k in first.columns}
    parts = tuple(p for x in tables for p in x.parts)
    return Table(parts, first.names, merged, first.classes)


def read_file(path: Path, wanted: set[str]) -> Table:
    """Read one file; of a parquet file only the columns `wanted`.

    Raises:
        DataError: no such file, another format, damaged, or without rows.
    """
    if path.suffix not in FORMATS:
        raise DataError(f"{path}: the ending '{path.suffix}' is none of {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the name")
    if git_lfs.is_pointer(path):
        raise DataError(git_lfs.cure(path))
    if path.suffix == ".parquet":
        table = _read_parquet(path, wanted)
    else:
        raw = path.read_bytes()
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as e:
            line = raw.count(b"\n", 0, e.start) + 1
            raise DataError(f"{path}, line {line} is not UTF-8: save the file as UTF-8") from e
        table = _read_json(path, text) if "json" in path.suffix else _read_csv(path, text)
    if not table.parts[0][1]:
        raise DataError(f"{path} has 0 rows: give a file with at least {MIN_ROWS}")
    return table


def _read_parquet(path: Path, wanted: set[str]) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            names = tuple(file.schema_arrow.names)
            data = file.read(columns=[x for x in names if x in wanted])
            rows = file.metadata.num_rows
            classes = class_names((file.schema_arrow.metadata or {}).get(b"huggingface"))
        columns = {x: data.column(x).to_pylist() for x in data.column_names}
    except (OSError, ValueError, pyarrow.ArrowException) as e:
        raise DataError(
            f"{path} cannot be read as parquet ({str(e).splitlines()[0][:200]}): "
            "it may be cut off, copy it again"
        ) from e
    return Table(((str(path), rows),), names, columns, classes)


def _read_json(path: Path, text: str) -> Table:
    rows: list[dict[str, Any]] = []
    # Not splitlines(): JSON may hold U+2028 and its like inside a string.
    lines = [x for x in text.split("\n") if x.strip()]
    for i, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as e:
            raise DataError(
                f"{path}, row {i} is not JSON ({str(e)[:100]}): "
                "one object per line is needed; the file may be cut off"
            ) from e
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {i} is a {type(row).__name__}, not an object: write one "
                'object per line, as {"text": "...", "label": 0}'
            )
        rows.append(row)
    names = tuple(dict.fromkeys(k for row in rows for k in row))
    return Table(
        ((str(path), len(rows)),), names, {k: [r.get(k) for r in rows] for k in names}
    )


def _read_csv(path: Path, text: str) -> Table:
    lines = [x for x in text.splitlines() if x] if path.suffix == ".tsv" else []
    rows: list[list[str]] = [x.split("\t") for x in lines]
    if not rows or any(len(x) != len(rows[0]) for x in rows):
        rows = _parse_csv(path, text)
    else:
        # Plain tab-separated text, where a lone quote is just a character (GLUE's files).
        rows = [[_unquoted(x) for x in row] for row in rows]
    header, body = (rows[0], rows[1:]) if rows else ([], [])
    if len(set(header)) < len(header):
        twice = next(x for x in header if header.count(x) > 1)
        raise DataError(f"{path} has two columns named '{twice}': rename one")
    for i, row in enumerate(body, 1):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {i} has {len(row)} fields, the header has {len(header)}: "
                "quote fields that hold the separator; the file may be cut off"
            )
    columns = {k: [row[j] or None for row in body] for j, k in enumerate(header)}
    return Table(((str(path), len(body)),), tuple(header), columns)


def _unquoted(field: str) -> str:
    quoted = field[:1] == '"' and re.fullmatch(r'"((?:[^"]|"")*)"', field)
    return quoted[1].replace('""', '"') if quoted else field


def _parse_csv(path: Path, text: str) -> list[list[str]]:
    tab = "\t" if path.suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=tab, strict=True)
    before = csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    try:
        rows.extend(row for row in reader if row)
    except csv.Error as e:
        raise DataError(
            f"{path}, row {len(rows)} cannot be read ({e}): "
            "check its quotes; the file may be cut off"
        ) from e
    finally:
        csv.field_size_limit(before)
    return rows


def hub_splits(source: str) -> dict[str, Any]:
    """The splits of a hub data set: `train`, `validation`, `test`.

    Raises:
        DataError: the look-up failed.
        MissingError: the `datasets` library is not installed.
    """
    try:
        import datasets
    except ImportError as e:
        raise MissingError(
            f"'{source}' is no file or folder here, and reading it as a hub data set needs "
            "the datasets library: pip install 'prumux[hub]'"
        ) from e
    name, _, config = source.partition(":")
    try:
        found = datasets.load_dataset(name, config or None)
    # The remedy is the same for every error of the hub, the network or a broken data set.
    except Exception as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise DataError(
            f"'{source}' is no file or folder here, and the hub look-up failed: {reason}\n"
            "give a folder (--data DIR), or owner/name:config"
        ) from e
    alias = {**_SPLIT_NAMES, "validation_matched": "validation"}
    return {alias.get(k, k): v for k, v in found.items()}


def hub_table(title: str, split: Any, wanted: set[str]) -> Table:
    """Read one split of `hub_splits`."""
    columns = {x: list(split[x]) for x in split.column_names if x in wanted}
    classes = {}
    for name in columns:
        feature = split.features[name]
        names = getattr(getattr(feature, "feature", feature), "names", None)
        if names:
            classes[name] = tuple(names)
    return Table(((title, len(split)),), tuple(split.column_names), columns, classes)
