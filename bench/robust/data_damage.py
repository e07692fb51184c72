"""Damage to data files: bytes, columns, types and encodings."""

from __future__ import annotations

import csv
import io
import json
import pickle
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .checkpoint_damage import CANARY, Bomb, Damage
from .values import change_encoding, change_tree, damage_file, dumps, odd, shown

Table = dict[str, list[Any]]
NAMES = (
    "text",
    "label",
    "labels",
    "sentence",
    "text_a",
    "text_b",
    "score",
    "tags",
    "idx",
    "",
    " text ",
    "text\n",
    "字",
)


def pick(random: Random, data: Path) -> Path:
    """Choose one of the data files."""
    return random.choice(sorted(data.iterdir()))


def data_bytes(random: Random, data: Path) -> str:
    """Damage the bytes of a file."""
    return damage_file(random, pick(random, data))


def encodings(random: Random, data: Path) -> str:
    """Write a text file in another encoding."""
    path = pick(random, data)
    return (
        damage_file(random, path)
        if path.suffix == ".parquet"
        else change_encoding(random, path)
    )


def rename(random: Random, data: Path) -> str:
    """Rename a file, or copy it to another name or ending."""
    path = pick(random, data)
    endings = ("parquet", "jsonl", "json", "csv", "tsv", "txt", "csv.gz", "arrow")
    stem = random.choice(
        [path.stem, "val", "dev", "valid", "train-00000-of-00002", "test_matched"]
    )
    new = path.with_name(f"{stem}.{random.choice(endings)}")
    (path.rename if random.random() < 0.6 else _copy(path))(new)
    return f"{path.name} -> {new.name}"


def _copy(path: Path) -> Any:
    return lambda new: new.write_bytes(path.read_bytes())


def cells(random: Random, data: Path) -> str:
    """Put other values into some cells of a column."""
    path = pick(random, data)
    table = read(path)
    name, value = random.choice(list(table)), odd(random)
    column, share = table[name], random.choice([0.02, 0.5, 1.0])
    value = odd(random, column[0])
    hit = [i for i in range(len(column)) if random.random() < share] or [0]
    for i in hit:
        column[i] = value
    _write(path, table, random)
    return f"{path.name}: {name} = {shown(value)} in {len(hit)} of {len(column)} rows"


def columns(random: Random, data: Path) -> str:
    """Drop, rename, add or swap columns, or cut rows."""
    path = pick(random, data)
    table = read(path)
    name = random.choice(list(table))
    kind = random.choice(("drop", "rename", "add", "swap", "rows", "none"))
    if kind == "drop":
        del table[name]
    elif kind == "rename":
        kind = f"rename to {shown(new := random.choice(NAMES))}"
        table[new] = table.pop(name)
    elif kind == "add":
        kind = f"add {shown(new := random.choice(NAMES))}"
        table[new] = [odd(random)] * len(table[name])
    elif kind == "swap":
        other = random.choice(list(table))
        table[name], table[other] = table[other], table[name]
    else:
        rows = 0 if kind == "none" else random.choice([1, 7, 8])
        kind, table = f"{rows} rows", {k: x[:rows] for k, x in table.items()}
    _write(path, table, random)
    return f"{path.name}: {name} {kind}"


def trees(random: Random, data: Path) -> str:
    """Change one node of the list of rows, and write the rows as JSON or as JSON lines."""
    path = pick(random, data)
    table = read(path)
    rows = [dict(zip(table, x, strict=True)) for x in zip(*table.values(), strict=True)]
    tree, said = change_tree(random, json.loads(json.dumps(rows)), NAMES)
    lines = isinstance(tree, list) and random.random() < 0.7
    text = "\n".join(map(dumps, tree)) if lines else dumps(tree)
    path.unlink()
    path.with_suffix(".jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    return f"{path.stem}.jsonl: {said}"


def parquet_types(random: Random, data: Path) -> str:
    """Write a file as parquet, with other types or with metadata that would run code."""
    path = pick(random, data)
    table, kind = read(path), random.choice(("type", "type", "pickle", "huggingface"))
    name = random.choice(list(table))
    arrays = {k: pa.array(x) for k, x in table.items()}
    rows, metadata = len(table[name]), {}
    if kind == "type":
        arrays[name], kind = _typed(random, rows)
    elif kind == "pickle":
        bomb = pickle.dumps(Bomb(data / CANARY, "exec"))
        metadata = {
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": bomb,
        }
    fields = [
        pa.field(k, x.type, metadata=metadata if k == name and metadata else None)
        for k, x in arrays.items()
    ]
    extra = {"huggingface": json.dumps(odd(random))} if kind == "huggingface" else None
    path.unlink()
    made = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields, extra))
    pq.write_table(made, path.with_suffix(".parquet"))
    return f"{path.stem}.parquet: {name} {kind}"


def _typed(random: Random, rows: int) -> tuple[Any, str]:
    texts = pa.array(["x"] * rows)
    zeros = pa.array([0] * rows)
    made = [
        pa.nulls(rows),
        texts.cast(pa.binary()),
        pa.array([b"\xff\xfe"] * rows),
        texts.cast(pa.large_string()),
        texts.dictionary_encode(),
        zeros.cast(pa.timestamp("ns")),
        zeros.cast(pa.date64()),
        zeros.cast(pa.decimal128(20)),
        zeros.cast(pa.bool_()),
        pa.array([[["x"]]] * rows),
        pa.array([{"a": 1}] * rows),
        pa.array([[("a", 1)]] * rows, pa.map_(pa.string(), pa.int64())),
        pa.array([float("nan")] * rows),
        pa.array([2**63 + 1] * rows, pa.uint64()),
    ]
    found = random.choice(made)
    return found, str(found.type)


def quoting(random: Random, data: Path) -> str:
    """Write csv or tsv with other separators, quotes and line ends, or with a ragged row."""
    path = pick(random, data)
    table = read(path)
    if any(isinstance(x[0], list) for x in table.values()):
        return cells(random, data)
    separator = random.choice([",", "\t", ";", "|"])
    made = io.StringIO()
    style: Any = random.choice([csv.QUOTE_ALL, csv.QUOTE_NONE, csv.QUOTE_MINIMAL])
    writer = csv.writer(
        made,
        delimiter=separator,
        quoting=style,
        escapechar="\\",
        lineterminator=random.choice(["\n", "\r\n", "\r", "\n\n"]),
    )
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    text = made.getvalue()
    extra = random.choice(["", '"', '"\n', f"{separator * 3}\n", "\\", '""', "#"])
    where = random.randrange(len(text) + 1)
    ending = random.choice(["csv", "tsv"])
    path.unlink()
    path.with_suffix(f".{ending}").write_text(
        text[:where] + extra + text[where:], newline="", encoding="utf-8"
    )
    return f"{path.stem}.{ending}: separator {separator!r}, {extra!r} at {where}"


def read(path: Path) -> Table:
    """Read the columns of a sound data file."""
    if path.suffix == ".parquet":
        return dict(pq.read_table(path).to_pydict())
    text = path.read_text(encoding="utf-8")
    if "json" in path.suffix:
        rows: list[dict[str, Any]] = [json.loads(x) for x in text.splitlines()]
    else:
        rows = list(
            csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ",")
        )
    return {k: [x[k] for x in rows] for k in rows[0]}


def _write(path: Path, table: Table, random: Random) -> None:
    """Write a table in the file's format. Values that parquet cannot store become text."""
    rows = list(zip(*table.values(), strict=True)) if table else []
    if path.suffix == ".parquet":
        try:
            made = pa.table(table)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError):
            made = pa.table({k: [ascii(v)[:99] for v in x] for k, x in table.items()})
        pq.write_table(made, path)
    elif "json" in path.suffix:
        lines = [dumps(dict(zip(table, x, strict=True))) for x in rows]
        random.shuffle(lines)
        path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    else:
        with path.open("w", newline="", encoding="utf-8", errors="surrogatepass") as file:
            writer = csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writerow(table)
            writer.writerows(rows)


DATA: dict[str, Damage] = {
    "bytes": data_bytes,
    "encodings": encodings,
    "names": rename,
    "cells": cells,
    "columns": columns,
    "rows as JSON": trees,
    "parquet types": parquet_types,
    "quotes": quoting,
}
