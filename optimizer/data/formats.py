"""Parse one file: parquet, arrow, jsonl, json, csv or tsv.

No code of a data file is executed. Row numbers in messages count from 1 and skip the header.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from prumux.optimizer.base import git_lfs
from prumux.optimizer.base.errors import DataError

from .class_names import class_names
from .names import folded, stripped, twice
from .table import Table

FORMATS = (".parquet", ".jsonl", ".json", ".csv", ".tsv", ".arrow")
"""Endings of data files. `.gz` may follow after `.jsonl`, `.json`, `.csv` and `.tsv`."""
_TEXTS = FORMATS[1:5]
_SAME = {".ndjson": ".jsonl"}
MIN_ROWS = 8
"""Smallest number of rows that a role may have."""

_CUT_OFF = "the file may be cut off"


def ending_of(path: Path) -> str:
    """The file's ending, if it is one of `FORMATS`; '' = it is not."""
    ending = path.suffix.lower()
    packed = ending == ".gz"
    if packed:
        ending = Path(path.stem).suffix.lower()
    ending = _SAME.get(ending, ending)
    return ending if ending in (_TEXTS if packed else FORMATS) else ""


def read_file(path: Path, wanted: set[str]) -> Table:
    """Read one file. Only the columns `wanted` of a parquet or arrow file are read.

    Raises:
        DataError: the file is missing, damaged, of another format, or without rows.
    """
    ending = ending_of(path)
    if not ending:
        raise DataError(f"{path}: the ending '{path.suffix}' is none of {', '.join(FORMATS)}")
    if not path.is_file():
        raise DataError(f"there is no file {path}: check the name")
    try:
        table = _parsed(path, ending, wanted)
    except OSError as e:
        raise DataError(f"{path} cannot be read ({e.strerror or e}): check the file") from e
    if not table.parts[0][1]:
        raise DataError(f"{path} has 0 rows: give a file with at least {MIN_ROWS}")
    return table


def _parsed(path: Path, ending: str, wanted: set[str]) -> Table:
    if git_lfs.is_pointer(path):
        raise DataError(git_lfs.cure(path))
    if ending not in _TEXTS:
        return _read_arrow(path, {folded(x) for x in wanted}, ending[1:])
    text = _text(path)
    if "json" in ending:
        return _read_json(path, text, ending)
    return _read_csv(path, text, "\t" if ending == ".tsv" else ",")


def _text(path: Path) -> str:
    raw = path.read_bytes()
    if path.suffix.lower() == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as e:
            raise DataError(f"{path} cannot be unpacked ({e}): {_CUT_OFF}") from e
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object.count(b"\n", 0, e.start) + 1
        name = "UTF-16, as it begins" if wide else "UTF-8"
        raise DataError(f"{path}, line {line} is not {name}: save the file as UTF-8") from e
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(
            f"{path}, line {line} holds a null byte: save the file as text in UTF-8"
        )
    return text


def _read_arrow(path: Path, wanted: set[str], kind: str) -> Table:
    import pyarrow

    try:
        schema = _arrow_schema(path, kind)
        _refuse_twins(path, stripped(schema.names))
        data = _arrow_table(path, kind, [x for x in schema.names if folded(x) in wanted])
        data.validate(full=True)  # damaged offsets would crash the process
        columns = {x: data.column(x).to_pylist() for x in data.column_names}
    except (OSError, ValueError, LookupError, pyarrow.ArrowException) as e:
        reason = (str(e).splitlines() or [type(e).__name__])[0][:200]
        raise DataError(
            f"{path} cannot be read as {kind} ({reason}): it may be cut off, copy it again"
        ) from e
    classes = class_names((schema.metadata or {}).get(b"huggingface"))
    return Table(
        ((str(path), data.num_rows),),
        tuple(stripped(schema.names)),
        {x.strip(): v for x, v in columns.items()},
        {x.strip(): v for x, v in classes.items()},
    )


def _arrow_schema(path: Path, kind: str) -> Any:
    if kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            return file.schema_arrow
    with _arrow_reader(path) as reader:
        return reader.schema


def _arrow_table(path: Path, kind: str, names: list[str]) -> Any:
    if kind == "parquet":
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(path) as file:
            return file.read(columns=names)
    with _arrow_reader(path) as reader:
        return reader.read_all().select(names)


def _arrow_reader(path: Path) -> Any:
    """Open an arrow stream, which `datasets` writes, or an arrow file with a footer."""
    import pyarrow.ipc

    with path.open("rb") as file:
        footer = file.read(6) == b"ARROW1"
    source = pyarrow.memory_map(str(path))
    return pyarrow.ipc.open_file(source) if footer else pyarrow.ipc.open_stream(source)


def _refuse_twins(path: Path, names: Sequence[str]) -> None:
    double = twice(names)
    if double is not None:
        raise DataError(f"{path} has two columns named '{double}': rename one")


def _read_json(path: Path, text: str, ending: str) -> Table:
    """Parse an array of objects, one object a line, or (.json) an object of columns."""
    # Not splitlines(): a JSON string may contain U+2028 and similar characters.
    lines = [x for x in text.split("\n") if x.strip()]
    if not lines:
        return Table(((str(path), 0),), (), {})
    whole, failed = None, None
    if ending == ".json" or lines[0].lstrip().startswith("["):
        try:
            whole = json.loads(text, object_pairs_hook=_object)
        except (ValueError, RecursionError) as e:
            failed = e
    if isinstance(whole, dict):
        rows = _object_rows(path, whole)
    elif isinstance(whole, list):
        rows = whole
    else:
        rows = _json_lines(path, lines, failed)
    if all(isinstance(x, dict) and "paragraphs" in x for x in rows):
        rows = _squad_rows(path, rows)
    for i, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise DataError(
                f"{path}, row {i} is a {type(row).__name__}, not an object: write objects "
                'as {"text": "...", "label": 0}, one per line or in an array'
            )
    names = tuple(dict.fromkeys(k for row in rows for k in row))
    columns = {k: [r.get(k) for r in rows] for k in names}
    return Table(((str(path), len(rows)),), names, columns)


def _json_lines(path: Path, lines: list[str], failed: Exception | None) -> list[Any]:
    rows = []
    for i, line in enumerate(lines, 1):
        try:
            rows.append(json.loads(line, object_pairs_hook=_object))
        except (ValueError, RecursionError) as e:
            # The file may be one JSON value on several lines: report the error of the whole
            # file.
            reason = failed if failed is not None and i == 1 else e
            raise DataError(
                f"{path}, row {i} is not JSON ({str(reason)[:100]}): "
                f"one object per line, or one array of objects, is needed; {_CUT_OFF}"
            ) from e
    return rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Build a dict from an object's pairs, and refuse repeated keys.

    Raises:
        ValueError: a key occurs twice.
    """
    names = stripped(k for k, _ in pairs)
    if len(set(names)) < len(names):
        raise ValueError(f"two values of '{twice(names)}'")
    return dict(zip(names, (x for _, x in pairs), strict=True))


def _object_rows(path: Path, whole: dict[str, Any]) -> list[Any]:
    """The rows of `{"data": [{...}, ...]}`, of an object of columns, or of a single object."""
    lists = {k: v for k, v in whole.items() if isinstance(v, list)}
    tables = [k for k, v in lists.items() if v and all(isinstance(x, dict) for x in v)]
    if len(tables) == 1:
        return lists[tables[0]]
    if tables:
        raise DataError(
            f"{path} holds {len(tables)} lists of objects ({', '.join(tables[:8])}): "
            "give one file for each split"
        )
    indexed = [x for x in whole.values() if isinstance(x, dict)]
    if indexed and len(indexed) == len(whole) and len({tuple(x) for x in indexed}) == 1:
        lists = {k: list(v.values()) for k, v in whole.items()}  # pandas' to_json
    if not lists or len(lists) < len(whole):
        return [whole]
    sizes = {k: len(v) for k, v in lists.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"'{k}' has {n}" for k, n in list(sizes.items())[:4])
        raise DataError(f"{path}: columns of different lengths ({shown} values)")
    return [dict(zip(lists, x, strict=True)) for x in zip(*lists.values(), strict=True)]


def _squad_rows(path: Path, articles: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each question of a file in SQuAD's format.

    Questions with `is_impossible` have no answers, even if the file lists some.

    Args:
        path: the file, for messages.
        articles: the list `data` of the file. Each article has `paragraphs`, and each
            paragraph has a `context` and `qas`.

    Raises:
        DataError: an entry has another form.
    """
    return [
        {
            "id": question.get("id"),
            "question": question.get("question"),
            "context": context,
            "answers": _answers(question),
        }
        for context, question in _questions(path, articles)
    ]


def _answers(question: Mapping[str, Any]) -> Any:
    if question.get("is_impossible") is True:
        return []
    return question.get("answers")


def _questions(
    path: Path, articles: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[Any, Mapping[str, Any]]]:
    for i, article in enumerate(articles):
        at = f"data[{i}]"
        for j, paragraph in enumerate(_list(path, at, "paragraphs", article)):
            there = f"{at}.paragraphs[{j}]"
            for question in _list(path, there, "qas", paragraph):
                yield paragraph.get("context"), question


def _list(
    path: Path, at: str, name: str, holder: Mapping[str, Any]
) -> Sequence[Mapping[str, Any]]:
    """The list of objects under the key `name` of an object."""
    value = holder.get(name)
    if not isinstance(value, list):
        _fail(path, f"{at} has no list '{name}'")
    for i, x in enumerate(value):
        if not isinstance(x, dict):
            _fail(path, f"{at}.{name}[{i}] is a {type(x).__name__}, not an object")
    return value


def _fail(path: Path, text: str) -> NoReturn:
    raise DataError(
        f"{path}: {text}\n"
        'SQuAD\'s form is {"data": [{"paragraphs": [{"context": "...", "qas": [{"question": '
        '"...", "answers": [{"text": "...", "answer_start": 0}]}]}]}]}'
    )


def _read_csv(path: Path, text: str, separator: str) -> Table:
    lines = re.split(r"\r\n|\n|\r", text) if separator == "\t" else []
    rows = [x.split("\t") for x in lines if x]
    if not rows or any(len(x) != len(rows[0]) for x in rows):
        rows = _parse_csv(path, text, separator)
    else:
        # In plain tab-separated text such as GLUE's, a lone quote is an ordinary character.
        rows = [[_unquoted(x) for x in row] for row in rows]
    header, body = (stripped(rows[0]), rows[1:]) if rows else ([], [])
    other = next((x for x in "\t;|" if separator == "," and header and x in header[0]), None)
    if len(header) == 1 and other:
        cure = "name it .tsv" if other == "\t" else "write it with commas"
        raise DataError(
            f"{path} has one column, {header[0]!r:.60}: its fields seem to be separated by "
            f"{other!r}; {cure}"
        )
    _refuse_twins(path, header)
    for i, row in enumerate(body, 1):
        if len(row) != len(header):
            raise DataError(
                f"{path}, row {i} has {len(row)} fields, the header has {len(header)}: "
                f"quote fields that hold the separator; {_CUT_OFF}"
            )
    columns = {k: [row[j] or None for row in body] for j, k in enumerate(header)}
    return Table(((str(path), len(body)),), tuple(header), columns)


def _unquoted(field: str) -> str:
    quoted = field[:1] == '"' and re.fullmatch(r'"((?:[^"]|"")*)"', field)
    return quoted[1].replace('""', '"') if quoted else field


def _parse_csv(path: Path, text: str, separator: str) -> list[list[str]]:
    # In `text, label` the blank belongs to the separator, even if a quote follows.
    blanks = re.match(r'[^\r\n"]*, ', text) is not None and separator == ","
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=separator,
        strict=True,
        skipinitialspace=blanks,
    )
    before = csv.field_size_limit(sys.maxsize)
    rows: list[list[str]] = []
    try:
        rows.extend(row for row in reader if row)
    except csv.Error as e:
        raise DataError(
            f"{path}, row {len(rows)} cannot be read ({e}): check its quotes; {_CUT_OFF}"
        ) from e
    finally:
        csv.field_size_limit(before)
    return rows
