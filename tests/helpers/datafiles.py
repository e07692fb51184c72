"""Small data files to test with."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from prumux.optimizer.data.rows import Rows
from prumux.optimizer.tasks.classification import Classification

TASK = Classification(("negative", "positive"))
FORMATS = ("parquet", "jsonl", "json", "csv", "tsv")


def write(path: Path, **columns: list[Any]) -> Path:
    """A table in the format that the name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(columns)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif "json" in path.suffix:
        table.to_json(path, orient="records", lines=True)
    else:
        table.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return path


def labelled(path: Path, rows: int, prefix: str = "") -> Path:
    prefix = prefix or path.stem
    texts = [f"{prefix} {i}" for i in range(rows)]
    return write(path, text=texts, label=[i % 2 for i in range(rows)])


def ids(rows: Rows) -> list[int]:
    assert isinstance(rows.labels, np.ndarray)
    return [int(x) for x in rows.labels]


def text(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
