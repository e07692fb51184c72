"""Several labels a row: one column of lists or texts, or a column for each label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.rows import Rows, read_rows
from prumux.optimizer.tasks.multilabel import MultiLabel
from tests.data.test_splits import load
from tests.helpers.datafiles import FORMATS, text, write

TASK = MultiLabel(("anger", "joy", "fear"))
TEXTS = ["a", "b", "c", "d"]
EACH: dict[str, list[Any]] = {"anger": [1, 0, 0, 1], "joy": [0, 1, 0, 1], "fear": [1, 0, 0, 0]}
MATRIX = [[1, 0, 1], [0, 1, 0], [0, 0, 0], [1, 1, 0]]


def matrix(rows: Rows) -> list[list[int]]:
    assert isinstance(rows.labels, np.ndarray)
    found: list[list[int]] = rows.labels.tolist()
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_a_column_for_each_label(tmp_path: Path, kind: str) -> None:
    rows = read_rows(write(tmp_path / f"x.{kind}", id=[7] * 4, text=TEXTS, **EACH), TASK)
    assert matrix(rows) == MATRIX
    assert rows.notes == ("labels: 0 or 1 in 3 columns: anger, joy, fear",)
    assert rows.unused == ("id",)
    named = {"Anger ": EACH["anger"], "happy": EACH["joy"], "FEAR": EACH["fear"]}
    file = write(tmp_path / f"y.{kind}", text=TEXTS, **named)
    assert matrix(read_rows(file, TASK, {"joy": "happy"})) == MATRIX


@pytest.mark.parametrize(
    "joy", [[0.0, 1.0, 0.0, 1.0], [False, True, False, True], ["0", "1", "false", "True"]]
)
def test_values_of_such_a_column(tmp_path: Path, joy: list[Any]) -> None:
    rows = read_rows(write(tmp_path / "x.jsonl", text=TEXTS, **EACH | {"joy": joy}), TASK)
    assert matrix(rows) == MATRIX


def test_rows_without_labels_are_skipped_and_counted(tmp_path: Path) -> None:
    each = {k: [-1, *v[1:3], None] for k, v in EACH.items()}
    file = write(tmp_path / "x.jsonl", text=TEXTS, **each)
    rows = read_rows(file, TASK)
    assert matrix(rows) == MATRIX[1:3]
    assert "2 without a label in 'anger, joy, fear'" in rows.skipped
    hidden = {k: [-1] * 4 for k in EACH}
    rows = read_rows(write(tmp_path / "y.jsonl", text=TEXTS, **hidden), TASK)
    assert rows.labels is None
    assert "it has no labels" in rows.unlabelled


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "csv"])
def test_one_column_of_lists_or_texts(tmp_path: Path, kind: str) -> None:
    lists: list[Any] = [["anger", "fear"], ["joy"], [], ["anger", "joy"]]
    values = [str(x) for x in lists] if kind == "csv" else lists
    for name in ("labels", "label"):
        rows = read_rows(write(tmp_path / f"x.{kind}", text=TEXTS, **{name: values}), TASK)
        assert matrix(rows) == MATRIX
    texts = ["anger, fear", "joy", None, "joy,anger"]
    rows = read_rows(write(tmp_path / f"y.{kind}", text=TEXTS, labels=texts), TASK)
    assert matrix(rows) == [*MATRIX[:2], MATRIX[3]]
    assert "1 without a label in 'labels'" in rows.skipped
    assert rows.notes == ("labels: texts are split at ','",)


def test_names_of_the_data_and_of_the_command_line(tmp_path: Path) -> None:
    lists = [["wrath", "fear"], ["joy"], [], ["wrath", "joy"]]
    file = write(tmp_path / "x.jsonl", text=TEXTS, labels=lists)
    rows = read_rows(file, TASK, labels={"wrath": "anger"})
    assert matrix(rows) == MATRIX
    assert rows.labels_used == frozenset({"wrath"})
    joined = [";".join(x) or None for x in lists]
    file = write(tmp_path / "y.csv", text=TEXTS, labels=joined)
    assert matrix(read_rows(file, TASK, labels={"wrath": "anger"})) == [*MATRIX[:2], MATRIX[3]]
    # The data numbers its classes in another order than the model.
    text(tmp_path / "README.md", CARD)
    file = write(tmp_path / "z.jsonl", text=TEXTS, labels=[[2, 1], [0], [], [0, 2]])
    assert matrix(read_rows(file, TASK)) == MATRIX


CARD = """---
dataset_info:
  features:
  - name: labels
    sequence:
      class_label:
        names:
          '0': joy
          '1': fear
          '2': anger
---
"""


@pytest.mark.parametrize(
    ("columns", "changes", "message"),
    [
        (
            {},
            {"joy": None},
            "'anger' is named like a label .* 'joy'\n.*--columns joy=NAME, or",
        ),
        (
            {},
            {"labels": [[0]] * 4},
            "'labels' and 3 columns .*\n.* --columns labels=labels, or",
        ),
        ({}, {"joy": [0, 0.7, 0, 1]}, "row 2: 'joy' is 0.7: write 0 or 1"),
        ({}, {"joy": [0, None, 0, 1]}, "row 2: 'joy' is empty: write 0 or 1"),
        ({}, {"joy": [0, "yes", 0, 1]}, "row 2: 'joy' is 'yes'"),
        ({}, {"joy": [0, -1, 0, 1]}, "row 2: 'joy' is -1"),
        (
            {},
            {"JOY ": [0] * 4, "joy": None, "Joy": [0] * 4},
            "2 columns are named like .*'joy'",
        ),
        ({"joy": "glad"}, {}, "no column 'glad' .--columns joy=glad."),
        ({"joy": "joy", "labels": "x"}, {}, "--columns labels=x joy=joy: give the one column"),
        ({"joy": "anger"}, {}, "'anger' is named for the labels 'anger' and 'joy'"),
        ({"rage": "joy"}, {}, "--columns rage=... is unknown; .* anger, joy, fear"),
        ({}, {k: [0] * 4 for k in EACH}, "all 4 rows have no label"),
        ({}, {k: [1] * 4 for k in EACH}, "all 4 rows have 'anger, joy, fear'"),
    ],
)
def test_columns_that_do_not_fit(
    tmp_path: Path, columns: dict[str, str], changes: dict[str, Any], message: str
) -> None:
    each = {k: v for k, v in (EACH | changes).items() if v is not None}
    file = write(tmp_path / "x.jsonl", text=TEXTS, **each)
    with pytest.raises(DataError, match=message) as caught:
        read_rows(file, TASK, columns)
    assert len(str(caught.value).splitlines()) <= 5


def test_the_user_says_which_column_counts(tmp_path: Path) -> None:
    lists = [["joy"], ["joy"], ["fear"], []]
    file = write(tmp_path / "x.jsonl", text=TEXTS, labels=lists, **EACH)
    one = read_rows(file, TASK, {"labels": "labels"})
    assert matrix(one) == [[0, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert {*one.unused} == {*EACH}
    assert matrix(read_rows(file, TASK, {"joy": "joy"})) == MATRIX


def test_a_text_column_named_like_a_label_is_a_text(tmp_path: Path) -> None:
    task = MultiLabel(("text", "joy"))
    file = write(tmp_path / "x.jsonl", text=TEXTS, labels=[["joy"], ["text"], [], []])
    assert matrix(read_rows(file, task)) == [[0, 1], [1, 0], [0, 0], [0, 0]]


def test_splits_keep_the_matrix(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("validation", 40), ("test", 20)):
        each = {k: rng.integers(0, 2, count).tolist() for k in EACH}
        texts = [f"{name} {i}" for i in range(count)]
        write(tmp_path / f"{name}.jsonl", text=texts, **each)
    found = load(tmp_path, task=TASK)
    for rows in (found.fit, found.select, found.certify, found.test):
        assert rows is not None
        assert isinstance(rows.labels, np.ndarray)
        assert rows.labels.shape == (len(rows), 3)
    assert "labels: 0 or 1 in 3 columns: anger, joy, fear" in found.notes
