"""Columns and labels: which are found, and what wrong ones say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.rows import Rows, read_rows, read_texts
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens
from tests.helpers.datafiles import FORMATS, TASK, ids, labelled, text, write

SCORE = Regression(("score",))
TAGS = Tokens(("O", "B-X"))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("text_a", "text_b"),
        ("premise", "hypothesis"),
        ("question", "sentence"),
        ("sentence1", "sentence2"),
        ("question1", "question2"),
    ],
)
def test_usual_pairs(tmp_path: Path, a: str, b: str) -> None:
    columns: dict[str, list[Any]] = {
        b: ["y", "w"],
        "idx": [0, 1],
        a: ["x", "z"],
        "label": [0, 1],
    }
    rows = read_rows(write(tmp_path / "x.jsonl", **columns), TASK)
    assert (rows.text_a, rows.text_b) == (("x", "z"), ("y", "w"))


def test_named_columns(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"text": ["n", "m"], "my col": ["x", "z"], "y": [0, 1]}
    path = write(tmp_path / "x.csv", **columns)
    rows = read_rows(path, TASK, {"text_a": "my col", "label": "y"})
    assert (rows.text_a, ids(rows)) == (("x", "z"), [0, 1])
    assert read_rows(path, TASK, {"text_b": "my col"}).text_b == ("x", "z")
    assert read_rows(path, TASK, {"text": "my col"}).text_a == ("x", "z")


def test_texts_without_a_look_at_labels(tmp_path: Path) -> None:
    one = write(tmp_path / "train.jsonl", text=["x", "y"], label=["?", 9])
    assert read_texts(one, TASK).text_a == read_texts(tmp_path, TASK).text_a == ("x", "y")
    assert read_texts(one, TASK).labels is None
    tagged = write(tmp_path / "t.jsonl", tokens=[["a", "b"]], tags=[["?"]])
    assert read_texts(tagged, TAGS).words == (("a", "b"),)
    with pytest.raises(DataError, match=r"no column 'tokens'.*\nname it 'tokens'"):
        read_texts(one, TAGS)


@pytest.mark.parametrize("ending", FORMATS)
def test_unlabelled_and_label_names(tmp_path: Path, ending: str) -> None:
    assert read_rows(write(tmp_path / f"a.{ending}", text=["x", "y"]), TASK).labels is None
    hidden = write(tmp_path / f"b.{ending}", text=["x", "y"], label=[-1, -1])
    assert read_rows(hidden, TASK).labels is None
    names = write(tmp_path / f"c.{ending}", text=["x", "y"], label=["positive", "negative"])
    assert ids(read_rows(names, TASK)) == [1, 0]


@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("task", [TASK, SCORE])
def test_a_label_column_with_nothing_in_it_is_no_labels(
    tmp_path: Path, ending: str, task: Task
) -> None:
    path = write(tmp_path / f"x.{ending}", text=["x", "y"], label=[None, None])
    assert read_rows(path, task).labels is None
    assert read_rows(path, task, {"label": "label"}).labels is None


def test_tags_with_nothing_in_them_are_no_labels(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", tokens=[["a"], ["b"]], tags=[None, None])
    assert read_rows(path, TAGS).labels is None
    half = write(tmp_path / "y.jsonl", tokens=[["a"], ["b"]], tags=[["O"], None])
    rows = read_rows(half, TAGS)
    assert rows.words == (("a",),)
    assert rows.skipped.startswith("rows are skipped: 1 without a label in 'tags' (")


@pytest.mark.parametrize("ending", FORMATS)
def test_regression(tmp_path: Path, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", sentence=["x", "y"], score=[0.5, 5])
    rows = read_rows(path, SCORE)
    assert isinstance(rows.labels, np.ndarray)
    assert rows.labels.dtype == np.float64
    assert rows.labels.tolist() == [0.5, 5.0]
    assert read_rows(
        write(tmp_path / f"b.{ending}", text=["x"], label=[1.5]), SCORE
    ).labels == [1.5]


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
@pytest.mark.parametrize(("column", "tags"), [("tags", ["O", "B-X"]), ("ner_tags", [0, 1])])
def test_tokens(tmp_path: Path, ending: str, column: str, tags: list[object]) -> None:
    columns: dict[str, list[Any]] = {"tokens": [["a", "b"], ["c"]], column: [tags, tags[:1]]}
    rows = read_rows(write(tmp_path / f"x.{ending}", **columns), TAGS)
    assert (len(rows), rows.text_a, rows.words) == (2, (), (("a", "b"), ("c",)))
    assert isinstance(rows.labels, tuple)
    assert [x.tolist() for x in rows.labels] == [[0, 1], [0]]
    assert rows.take([1]).words == (("c",),)
    assert rows.take([1]).digest() != rows.digest()
    bare = write(tmp_path / f"y.{ending}", tokens=[["a"]])
    assert read_rows(bare, TAGS).labels is None


def test_take_and_digest() -> None:
    rows = Rows(("a", "b", "c"), ("d", "e", "f"), labels=np.array([0, 1, 0]))
    some = rows.take(np.array([2, 0]))
    assert (some.text_a, some.text_b, ids(some)) == (("c", "a"), ("f", "d"), [0, 0])
    assert rows.take([]).digest() == rows.take([]).digest()
    digests = {
        x.digest() for x in (rows, some, Rows(rows.text_a), Rows(rows.text_a, rows.text_b))
    }
    assert len(digests) == 4
    assert Rows(("ab", "c")).digest() != Rows(("a", "bc")).digest()


BAD_COLUMNS: list[tuple[str, str | bytes, str]] = [
    (
        "x.csv",
        "text,label\n,1\n ,0\n",
        "x.csv: all 2 rows are empty in 'text': give rows with",
    ),
    ("x.csv", "text,label\na,1\nb,7\n", r"x.csv, row 2: label 7 is out of range, .* 2 labels"),
    ("x.csv", "text,label\na,1\nb,1\n", r"x.csv: all 2 rows have the label 1 \('positive'\)"),
    ("x.csv", "body,y\na,1\n", r"no text column; the columns are: body, y\n.*text_a=NAME"),
    (
        "x.csv",
        "text,sentence\na,1\n",
        "more than one candidate for the text; .*sentence, text",
    ),
    ("x.jsonl", '{"text": 5}', r"row 1: 'text' is 5 \(int\), not text: write a string"),
    ("x.jsonl", '{"text": null}', "all 1 rows are empty in 'text'"),
    ("x.jsonl", '{"text": "a"}\n{"text": ["a"]}', r"row 2: 'text' is \['a'\] \(list\), not"),
    ("x.jsonl", '{"text": "\\ud800"}', "row 1: 'text' holds half a character"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_COLUMNS)
def test_bad_columns(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_rows(text(tmp_path / name, content), TASK)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_other_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no file .*x.csv: check the name"):
        read_rows(tmp_path / "x.csv", TASK)
    with pytest.raises(DataError, match=r"there is no file absent.csv"):
        read_rows("absent.csv", TASK)
    path = labelled(tmp_path / "train.csv", 4)
    with pytest.raises(
        DataError, match=r"no column 'y' \(--columns label=y\); .*: label, text"
    ):
        read_rows(path, TASK, {"label": "y"})
    with pytest.raises(
        DataError, match=r"--columns txt=... is unknown; .*: text_a, text_b, label"
    ):
        read_rows(path, TASK, {"txt": "text"})
    with pytest.raises(DataError, match="has no 'test' file; it has: train"):
        read_rows(tmp_path, TASK, split="test")
    with pytest.raises(DataError, match=r"train.csv, row 1: score .* not a finite number"):
        read_rows(write(tmp_path / "train.csv", text=["x"], score=["nan"]), SCORE)
    with pytest.raises(
        DataError, match=r"no column 'tokens'; the columns are: label, text\n.*tags="
    ):
        read_rows(labelled(tmp_path / "a.csv", 4), TAGS)
    with pytest.raises(DataError, match="row 1: 'tokens' is 'a b', not a list of words: use"):
        read_rows(write(tmp_path / "b.csv", tokens=["a b"], tags=["O O"]), TAGS)
    with pytest.raises(DataError, match="row 2: 1 tokens but 2 tags"):
        read_rows(
            write(tmp_path / "c.jsonl", tokens=[["a"], ["b"]], tags=[["O"], ["O", "O"]]), TAGS
        )
