"""Rows without content and values of wrong types: skipped and counted, or refused by name."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.rows import read_rows, read_texts
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.tokens import Tokens
from tests.data.test_splits import load, sizes
from tests.helpers.datafiles import TASK, ids, labelled, text, write

SCORE = Regression(("score",))
TAGS = Tokens(("O", "B-X"))
ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.json", json.dumps(ROWS)),
        ("x.json", json.dumps(ROWS, indent=2)),
        ("x.jsonl", json.dumps(ROWS)),
        ("x.json", json.dumps({"text": ["a", "b"], "label": [1, 0]}, indent=1)),
        ("x.json", json.dumps({"version": "1.0", "data": ROWS})),
        ("x.json", json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": 1, "1": 0}})),
        ("x.json", "\n".join(map(json.dumps, ROWS))),
        ("x.ndjson", "\n".join(map(json.dumps, ROWS))),
        ("x.csv", "text,label\na,1\nb,0\n".encode("utf-16")),
        ("x.CSV", "text,label\na,1\nb,0\n"),
        ("x.csv", 'text, label\n"a", 1\nb, 0\n'),
        ("x.csv.gz", gzip.compress(b"text,label\na,1\nb,0\n", mtime=0)),
        ("x.jsonl.gz", gzip.compress("\n".join(map(json.dumps, ROWS)).encode(), mtime=0)),
    ],
)
def test_further_forms(tmp_path: Path, name: str, content: str | bytes) -> None:
    rows = read_rows(text(tmp_path / name, content), TASK)
    assert (rows.text_a, ids(rows)) == (("a", "b"), [1, 0])


BAD: list[tuple[str, str | bytes, str]] = [
    ("x.csv", "text\tlabel\na\t1\n", r"separated by '\\t'; name it \.tsv"),
    ("x.csv", "text;label\na;1\n", "separated by ';'; write it with commas"),
    ("x.json", json.dumps({"train": ROWS, "dev": ROWS}), r"2 lists of objects \(train, dev\)"),
    ("x.json", '{"text": ["a", "b"], "label": [1]}', "lengths .'text' has 2, 'label' has 1"),
    ("x.json", json.dumps(ROWS, indent=1)[:-9], "not JSON .* line 8 column .*may be cut off"),
    ("x.json", "[1, 2]", "row 1 is a int, not an object"),
    ("x.json", "3", "row 1 is a int, not an object"),
    ("x.json", "[]", "has 0 rows"),
    ("x.jsonl", '{"text": "a", "text ": "b"}', "row 1 is not JSON .two values of 'text'"),
    ("x.csv", "text,label\na\0,1\n", "line 2 holds a null byte"),
    ("x.csv", "text,label\na,1\n".encode("utf-16-le"), "line 1 holds a null byte"),
    ("x.csv", "text,label\nq,1\n".encode("utf-16")[:-1], "line 2 is not UTF-16, as it begins"),
    ("x.csv", "text,label\na,1\ncafé,1\n".encode("latin-1"), "line 3 is not UTF-8"),
    ("x.csv.gz", gzip.compress(b"text\na\n", mtime=0)[:-9], "cannot be unpacked"),
    ("x.csv.gz", b"text\na\n", "cannot be unpacked"),
    ("x.parquet.gz", b"", r"the ending '.gz' is none of"),
    (
        "x.parquet",
        "version https://git-lfs.github.com/spec/v1\n",
        r"Git LFS pointer.*\n.*pull",
    ),
    ("x.arrow", b"ARROW1 and nothing", "cannot be read as arrow"),
    ("x.arrow", b"", "cannot be read as arrow"),
    ("x.jsonl", '{"text": "a", "label": [1]}', "row 1: the label .1. is a list: .*one label"),
    ("x.jsonl", '{"text": "a", "label": Infinity}', "row 1: label inf is neither an id nor"),
    (
        "x.jsonl",
        '{"text": "a", "label": 1}\n{"text": true, "label": 1}',
        "row 2: .* True .bool",
    ),
    ("x.jsonl", '{"text": "a", "label": 1}\n{"text": {"a": 1}, "label": 1}', "row 2: .*dict"),
    ("x.jsonl", '{"text": "a", "label": 1}\n{"text": 3.5, "label": 0}', "row 2: .*3.5 .float"),
    (
        "x.jsonl",
        '{"text": "a", "label": 1}\n{"text": "b", "label": "positive"}',
        "row 1: label 1 is neither .*; other rows hold names: use names or ids in all",
    ),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_bad_values(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_rows(text(tmp_path / name, content), TASK)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_rows_without_content(tmp_path: Path, kind: str) -> None:
    columns: dict[str, list[Any]] = {
        "text": [None, "a", "", " \t", "b", "c", "d"],
        "label": [1, 1, 0, 0, 0, None, 0],
    }
    if kind != "csv":
        columns["label"] = ["positive", "positive", "x", "x", "negative", " ", "negative"]
    file = write(tmp_path / f"x.{kind}", **columns)
    rows = read_rows(file, TASK)
    assert (rows.text_a, ids(rows)) == (("a", "b", "d"), [1, 0, 0])
    assert rows.skipped == (
        f"rows are skipped: 3 without text ({file}, row 1), "
        f"1 without a label in 'label' ({file}, row 6)"
    )
    # Later messages count rows as the file does.
    columns["label"][6] = "ugly"
    with pytest.raises(DataError, match=r"row 7: label 'ugly'"):
        read_rows(write(file, **columns), TASK)


def test_nan_is_nothing(tmp_path: Path) -> None:
    lines = ['{"text": "a", "label": 1}', '{"text": "b", "label": NaN}', '{"text": NaN}']
    rows = read_rows(text(tmp_path / "x.jsonl", "\n".join([*lines, lines[0]])), SCORE)
    assert rows.text_a == ("a", "a")
    assert "1 without text" in rows.skipped
    assert "1 without a label" in rows.skipped


def test_pairs_and_words_without_content(tmp_path: Path) -> None:
    pairs = write(
        tmp_path / "p.jsonl",
        text_a=["a", None, " "], text_b=[None, "b", ""], label=[0, 1, 1],
    )  # fmt: skip
    rows = read_rows(pairs, TASK)
    assert (rows.text_a, rows.text_b) == (("a", ""), ("", "b"))
    assert rows.skipped.startswith("rows are skipped: 1 without text (")
    words = write(
        tmp_path / "w.jsonl", tokens=[[], ["a"], None, [" "]], tags=[[], ["O"], [], []]
    )
    tagged = read_rows(words, TAGS)
    assert tagged.words == (("a",),)
    assert tagged.skipped.startswith("rows are skipped: 3 without text (")
    assert read_texts(words, TAGS).words == (("a",),)
    with pytest.raises(DataError, match=r"row 1: 'tokens' is \['a', 1\], not a list of words"):
        read_rows(text(tmp_path / "x.jsonl", '{"tokens": ["a", 1]}'), TAGS)
    with pytest.raises(DataError, match=r"row 1: 'tokens' holds half a character"):
        read_rows(text(tmp_path / "x.jsonl", '{"tokens": ["\\ud800"]}'), TAGS)


def test_skipped_rows_are_said_by_split(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 100)
    labelled(tmp_path / "dev.csv", 20)
    path = tmp_path / "dev.csv"
    path.write_text(path.read_text() + ",1\n")
    splits = load(tmp_path)
    assert sizes(splits) == (75, 25, 20, None)
    assert splits.warnings == (
        f"validation: rows are skipped: 1 without text ({path}, row 21)",
    )


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (1, "all its 9 labels are '1'"),
        (-1, "it has no labels (all are -1)"),
        (None, "it has no labels (its column 'label' is empty)"),
    ],
)
def test_test_labels_that_tell_nothing(tmp_path: Path, label: int | None, why: str) -> None:
    labelled(tmp_path / "train.csv", 100)
    labelled(tmp_path / "dev.csv", 20)
    texts = [f"t {i}" for i in range(9)]
    write(tmp_path / "test.csv", text=texts, label=[label] * 9)
    splits = load(tmp_path)
    assert sizes(splits) == (75, 25, 20, None)
    assert splits.warnings == (f"test: not used, {why}",)
    if label == 1:
        write(tmp_path / "dev.csv", text=texts, label=[label] * 9)
        with pytest.raises(DataError, match=r"all 9 rows have the label 1"):
            load(tmp_path)


def test_minus_one_beside_all_classes_is_no_label(tmp_path: Path) -> None:
    task = Classification(("entailment", "neutral", "contradiction"))
    texts = [f"t {i}" for i in range(5)]
    rows = read_rows(write(tmp_path / "x.csv", text=texts, label=[0, -1, 1, 2, 0]), task)
    assert ids(rows) == [0, 1, 2, 0]
    assert rows.skipped.startswith("rows are skipped: 1 without a label in 'label' (")
    # It may be a class where one is missing: sentiment as -1, 0, 1.
    three = write(tmp_path / "y.csv", text=texts, label=[0, -1, 1, 1, 0])
    with pytest.raises(DataError, match=r"row 2: label -1 is not in 0..2: remove the row"):
        read_rows(three, task)
    meant = {"-1": "contradiction", "0": "neutral", "1": "entailment"}
    assert ids(read_rows(three, task, labels=meant)) == [1, 2, 0, 0, 1]


def test_booleans(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": true}\n{"text": "b", "label": false}'
    file = text(tmp_path / "x.jsonl", lines)
    assert ids(read_rows(file, TASK)) == [1, 0]
    assert ids(read_rows(file, Classification(("True", "False")))) == [0, 1]
    with pytest.raises(
        DataError, match=r"row 1: the label True is true or false, .* 3 labels"
    ):
        read_rows(file, Classification(("a", "b", "c")))


def test_the_column_is_named(tmp_path: Path) -> None:
    file = text(tmp_path / "x.jsonl", '{"text": "a", "target": 7}')
    with pytest.raises(DataError, match=r"row 1: column 'target': label 7 is out of range"):
        read_rows(file, TASK, {"label": "target"})


def test_parquet_columns_with_one_name(tmp_path: Path) -> None:
    made = pyarrow.table([["a"], ["b"], [1]], names=["text", "text ", "label"])
    pyarrow.parquet.write_table(made, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"two columns named 'text': rename one"):
        read_rows(tmp_path / "x.parquet", TASK)


def test_tsv_with_unusual_line_ends(tmp_path: Path) -> None:
    file = text(tmp_path / "x.tsv", 'text\tlabel\na\u2028b "c\t1\nd\x85e\t0\n')
    assert read_rows(file, TASK).text_a == ('a\u2028b "c', "d\x85e")
