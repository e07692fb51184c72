"""Names of classes from files beside the data, and folders of `save_to_disk`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.rows import read_rows
from prumux.optimizer.tasks.tokens import Tokens
from tests.data.test_splits import load, sizes
from tests.helpers.datafiles import TASK, ids, write

LABEL = {"_type": "ClassLabel", "names": ["positive", "negative"]}
README = """\
---
license: mit
dataset_info:
  features:
  - name: text
    dtype: string
  - name: Label
    dtype:
      class_label:
        names:
          '0': positive
          '1': negative
  splits:
  - name: train
---
# A data set
"""
OTHER_ORDER = README.replace(
    "'0': positive\n          '1': negative", "1: negative\n          0: positive"
)
CONFIGS = README.replace("dataset_info:\n  features", "dataset_info:\n- features")


def swapped(file: Path) -> Path:
    """Rows whose 0 is the model's class 1."""
    return write(file, text=["a", "b", "c"], label=[0, 1, 1])


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.md", README),
        ("README.md", CONFIGS),
        ("README.md", OTHER_ORDER),
        ("dataset_info.json", json.dumps({"features": {"label": LABEL}})),
        ("dataset_infos.json", json.dumps({"default": {"features": {"label": LABEL}}})),
    ],
)  # fmt: skip
def test_names_beside_the_data(tmp_path: Path, kind: str, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    for file in (f"train.{kind}", f"data/train.{kind}", f"train/rows.{kind}"):
        found = read_rows(swapped(tmp_path / file), TASK)
        assert ids(found) == [1, 0, 0]
        assert found.notes[0].startswith("labels by name: the data has 0 = positive, 1 = neg")
    other = swapped(tmp_path / "elsewhere" / f"x.{kind}")
    assert ids(read_rows(other, TASK)) == [0, 1, 1]


def test_names_as_labels_need_no_names(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("---\ndataset_info: [a: b: c\n---\n")
    named = write(tmp_path / "a.csv", text=["a", "b"], label=["negative", "positive"])
    assert ids(read_rows(named, TASK)) == [0, 1]
    with pytest.raises(DataError, match=r"README.md cannot be read \(.*\)\nmend it, or move"):
        read_rows(swapped(tmp_path / "b.csv"), TASK)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "# Title",
        "---\n# no end",
        "---\nlicense: [mit\n---\n",
        "---\ndataset_info: 3\n---\n",
        "---\ndataset_info:\n  features: [1, {name: 3}]\n---\n",
        README.replace("'1'", "'2'"),
    ],
)
def test_a_readme_that_names_nothing(tmp_path: Path, content: str) -> None:
    (tmp_path / "README.md").write_text(content)
    assert ids(read_rows(swapped(tmp_path / "a.csv"), TASK)) == [0, 1, 1]


def test_configurations_that_differ(tmp_path: Path) -> None:
    other = {**LABEL, "names": ["negative", "positive"]}
    infos: dict[str, Any] = {"a": {"features": {"label": LABEL}}, "b": {"features": {}}}
    path = tmp_path / "dataset_infos.json"
    path.write_text(json.dumps(infos))
    assert ids(read_rows(swapped(tmp_path / "a.csv"), TASK)) == [1, 0, 0]
    path.write_text(json.dumps(infos | {"b": {"features": {"label": other}}}))
    with pytest.raises(DataError, match=r"names the classes of 'label' differently for diff"):
        read_rows(tmp_path / "a.csv", TASK)


def test_tags_by_name(tmp_path: Path) -> None:
    text = README.replace("Label", "ner_tags").replace(
        "dtype:\n      class_label", "sequence:\n      class_label"
    )
    (tmp_path / "README.md").write_text(
        text.replace("positive", "B-X").replace("negative", "O")
    )
    file = write(tmp_path / "a.jsonl", tokens=[["a", "b"], ["c"]], ner_tags=[[0, 1], [1]])
    labels = read_rows(file, Tokens(("O", "B-X"))).labels
    assert isinstance(labels, tuple)
    assert [x.tolist() for x in labels] == [[1, 0], [0]]


def saved(folder: Path, rows: int, split: str | None = None, **state: Any) -> Path:
    """A folder as `Dataset.save_to_disk` writes it."""
    columns = {
        "text": [f"{folder.name} {i}" for i in range(rows)],
        "label": [i % 2 for i in range(rows)],
    }
    info = {"info": {"features": {"label": LABEL}}}
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)})
    folder.mkdir(parents=True)
    name = "data-00000-of-00001.arrow"
    with pyarrow.ipc.new_stream(folder / name, table.schema) as writer:
        writer.write_table(table)
    facts = {"_data_files": [{"filename": name}], "_split": split} | state
    (folder / "state.json").write_text(json.dumps(facts))
    (folder / "dataset_info.json").write_text("{}")
    (folder / "cache-0123.arrow").write_bytes(b"left over by map")
    return folder


def test_save_to_disk(tmp_path: Path) -> None:
    for name, rows in (("train", 100), ("validation", 20)):
        saved(tmp_path / "both" / name, rows)
    (tmp_path / "both/dataset_dict.json").write_text('{"splits": ["train", "validation"]}')
    splits = load(tmp_path / "both")
    assert sizes(splits) == (75, 25, 20, None)
    assert splits.warnings == ()
    assert ids(splits.certify) == [1, 0] * 10
    alone = saved(tmp_path / "alone", 40, "validation")
    assert sizes(load(alone)) == (10, 10, 20, None)
    unnamed = saved(tmp_path / "unnamed", 40)
    with pytest.raises(DataError, match=r"no validation rows to certify on, only train"):
        load(unnamed)
    assert sizes(load(tmp_path, data=None, validation=unnamed)) == (10, 10, 20, None)


def test_damaged_save_to_disk(tmp_path: Path) -> None:
    moved = saved(tmp_path / "a", 9, _indices_data_files=[{"filename": "indices.arrow"}])
    with pytest.raises(DataError, match=r"call flatten_indices\(\) before save_to_disk"):
        find_files(moved)
    for i, files in enumerate(([{"filename": "x.arrow"}], [{"filename": "../a/state.json"}])):
        with pytest.raises(DataError, match=r"which is not there: copy it too"):
            find_files(saved(tmp_path / f"b{i}", 9, _data_files=files))
    (moved / "state.json").write_text("[]")
    with pytest.raises(DataError, match=r"state.json is not as datasets' save_to_disk writes"):
        find_files(moved)


def test_damaged_arrow(tmp_path: Path) -> None:
    file = next(saved(tmp_path / "a", 20).glob("data-*"))
    raw = bytearray(file.read_bytes())
    at = raw.index(b"a 0a 1a 2")  # the texts; the offsets of their ends stand before them
    raw[at - 50 : at - 40] = b"\xff" * 10
    file.write_bytes(raw)
    with pytest.raises(DataError, match="cannot be read as arrow"):
        read_rows(file, TASK)
