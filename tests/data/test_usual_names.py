"""The usual names of files, splits and columns; what is not used is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.files import find_files, unused_files
from prumux.optimizer.data.names import split_of
from prumux.optimizer.data.rows import read_rows
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.tokens import Tokens
from tests.data.test_splits import load, sizes
from tests.helpers.datafiles import TASK, ids, labelled, text, write

SCORE = Regression(("score",))
TAGS = Tokens(("O", "B-X"))


@pytest.mark.parametrize(
    "name",
    [
        "val.jsonl", "dev.csv", "valid.tsv", "eval.json", "Validation.jsonl", "VAL.CSV",
        "evaluation.csv", "validation_matched.jsonl", "dev-matched.csv",
        "validation_mismatched.jsonl", "data/val.csv", "val/rows.csv", "data/dev/0000.parquet",
        "validation-00000-of-00001.parquet", "val.ndjson",
    ],
)  # fmt: skip
def test_names_of_validation(tmp_path: Path, name: str) -> None:
    labelled(tmp_path / "train.csv", 100)
    made = labelled(tmp_path / "x.jsonl" if "ndjson" in name else tmp_path / name.lower(), 20)
    made.rename(tmp_path / name)
    splits = load(tmp_path)
    assert sizes(splits) == (75, 25, 20, None)
    assert splits.warnings == ()


def test_names_of_train_and_test() -> None:
    names = ("Training", "TRAIN ", "test_matched", "testing", "contest", "training_args", "x")
    found = ["train", "train", "test", "test", None, None, None]
    assert [split_of(x) for x in names] == found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("dev.csv", "val.csv"),
        ("validation.csv", "validation_matched.csv"),
        ("dev.csv", "dev/rows.csv"),
        ("dev.csv", "data/dev.csv"),
        ("dev-00000-of-00001.csv", "dev.csv"),
        ("dev-00000-of-00001.csv", "dev-00000-of-00002.csv"),
        ("val/a.csv", "val/b.jsonl"),
    ],
)
def test_two_files_that_may_be_validation(tmp_path: Path, first: str, second: str) -> None:
    labelled(tmp_path / "train.csv", 100)
    for name in (first, second):
        labelled(tmp_path / name, 20)
    with pytest.raises(DataError, match=r"holds both .* and .*: keep one, or name it with"):
        load(tmp_path)
    splits = load(tmp_path, validation=tmp_path / first)
    assert len(splits.certify) == 20
    said = [x for x in splits.warnings if "because --validation names another file" in x]
    assert len(said) >= 1


def test_matched_comes_before_mismatched(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 100)
    labelled(tmp_path / "validation_matched.csv", 20)
    labelled(tmp_path / "validation_mismatched.csv", 30)
    splits = load(tmp_path)
    assert len(splits.certify) == 20
    (line,) = splits.warnings
    assert line.startswith("not used: ")
    assert line.endswith("validation_matched.csv is the validation split")


def test_files_that_are_not_used(tmp_path: Path) -> None:
    for name in ("train", "dev", "more"):
        labelled(tmp_path / f"{name}.csv", 40)
    for name in ("test.txt", "readme.txt", "train.py", "README.md", "labels.json", "a.json"):
        (tmp_path / name).touch()
    lines = unused_files(tmp_path)
    assert [Path(x.split()[2].rstrip(",")).name for x in lines] == [
        "a.json",
        "more.csv",
        "test.txt",
    ]
    assert load(tmp_path).warnings == tuple(lines)
    # A model's folder is full of json files, and training may leave results in `eval`.
    (tmp_path / "config.json").write_text("{}")
    labelled(tmp_path / "eval/results.csv", 3)
    assert len(unused_files(tmp_path)) == 2


def test_links_and_files_in_place_of_folders(tmp_path: Path) -> None:
    file = labelled(tmp_path / "rows.csv", 40)
    with pytest.raises(DataError, match=r"is not a folder: say what its rows are: --valida"):
        load(file)
    with pytest.raises(DataError, match=r"holds no data: (.*\n)+not used: .*rows.csv"):
        load(tmp_path)
    (tmp_path / "train.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"is a link to a file that is not there"):
        find_files(tmp_path)


def test_missing_shards(tmp_path: Path) -> None:
    for i in (0, 2):
        labelled(tmp_path / f"train/rows-{i:05}-of-00003.csv", 40)
    with pytest.raises(DataError, match=r"2 of 3 shards of 'train' are there"):
        load(tmp_path)


def test_the_test_split_certifies_where_it_is_asked_for(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 100)
    labelled(tmp_path / "test.csv", 20)
    splits = load(tmp_path, validation="test")
    assert sizes(splits) == (75, 25, 20, None)
    assert splits.warnings == (
        "the rows of the test split certify, as --validation test says",
    )


HEADERS = ["text,labels", "text, label", "Text,LABEL", " text ,label ", "\ufefftext,Labels"]


@pytest.mark.parametrize("header", HEADERS)
def test_headers(tmp_path: Path, header: str) -> None:
    rows = "".join(f"row {i},{i % 2}\n" for i in range(10))
    file = text(tmp_path / "x.csv", f"{header}\n{rows}")
    found = read_rows(file, TASK)
    assert found.text_a[1] == "row 1"
    assert ids(found) == [0, 1] * 5
    assert found.unused == ()


@pytest.mark.parametrize("ending", ["parquet", "jsonl"])
def test_blanks_in_names_of_columns(tmp_path: Path, ending: str) -> None:
    columns: dict[str, list[Any]] = {" Sentence": ["x", "y"], "LABELS ": [1, 0], "id": [0, 1]}
    found = read_rows(write(tmp_path / f"x.{ending}", **columns), TASK)
    assert (found.text_a, ids(found), found.unused) == (("x", "y"), [1, 0], ("id",))
    named = read_rows(tmp_path / f"x.{ending}", TASK, {"label": "labels"})
    assert ids(named) == [1, 0]


def test_words_and_scores(tmp_path: Path) -> None:
    tagged = write(tmp_path / "a.jsonl", words=[["x"], ["y"]], labels=[["O"], ["B-X"]])
    assert read_rows(tagged, TAGS).words == (("x",), ("y",))
    scored = write(tmp_path / "b.jsonl", text=["x", "y"], Labels=[0.5, 1])
    assert read_rows(scored, SCORE).labels is not None
    pair = write(tmp_path / "c.jsonl", text=["x"], text_pair=["y"], idx=[0])
    assert read_rows(pair, TASK).text_b == ("y",)


def test_columns_that_may_be_either(tmp_path: Path) -> None:
    file = write(tmp_path / "x.jsonl", text=["x", "y"], label=[1, 0], labels=[0, 1])
    with pytest.raises(DataError, match=r"'label' and 'labels' may both .*\n.*label=label"):
        read_rows(file, TASK)
    found = read_rows(file, TASK, {"label": "labels"})
    assert (ids(found), found.unused) == ([0, 1], ("label",))
    empty = write(tmp_path / "y.jsonl", text=["x", "y"], label=[None] * 2, labels=[0, 1])
    assert ids(read_rows(empty, TASK)) == [0, 1]
    cased = write(tmp_path / "z.jsonl", text=["x", "y"], Label=[1, 0], LABEL=[0, 1])
    with pytest.raises(DataError, match=r"'Label' and 'LABEL' may both hold the labels"):
        read_rows(cased, TASK)
    with pytest.raises(DataError, match=r"2 columns 'label'"):
        read_rows(cased, TASK, {"label": "label"})
    assert ids(read_rows(cased, TASK, {"label": "LABEL"})) == [0, 1]
    twice = text(tmp_path / "t.csv", "text,text \na,b\n")
    with pytest.raises(DataError, match=r"two columns named 'text'"):
        read_rows(twice, TASK)
    with pytest.raises(DataError, match=r"--columns score=z label=y: give one of them"):
        read_rows(file, SCORE, {"score": "z", "label": "y"})
    with pytest.raises(DataError, match=r"--columns tags=y does not fit text-class"):
        read_rows(file, TASK, {"tags": "y"})


def test_label_columns_of_different_names(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 100)
    names: dict[str, list[Any]] = {
        "text": [f"v {i}" for i in range(20)],
        "labels": [0, 1] * 10,
    }
    write(tmp_path / "dev.csv", **names)
    assert sizes(load(tmp_path)) == (75, 25, 20, None)
    write(tmp_path / "dev.csv", text=names["text"], gold=names["labels"])
    with pytest.raises(
        DataError, match=r"dev.csv: it has no labels .* columns are: gold, tex"
    ):
        load(tmp_path)
    asked = load(tmp_path, certify_on_train=True)
    assert sizes(asked) == (25, 25, 50, None)
    assert asked.warnings[0].startswith("validation: not used, it has no labels (no column")
    assert asked.notes[-1] == "columns not used: gold (validation)"


def test_a_test_file_without_the_column_that_was_named(tmp_path: Path) -> None:
    for name, rows in (("train", 100), ("dev", 20)):
        labelled(tmp_path / f"{name}.csv", rows)
        path = tmp_path / f"{name}.csv"
        path.write_text(path.read_text().replace("text,label", "text,target"))
    write(tmp_path / "test.csv", id=[1] * 9, text=[f"t {i}" for i in range(9)])
    splits = load(tmp_path, columns={"label": "target"})
    assert sizes(splits) == (75, 25, 20, None)
    assert splits.warnings[0].startswith("test: not used, it has no labels (no column")
    write(tmp_path / "dev.csv", text=["a"] * 9)
    with pytest.raises(DataError, match=r"dev.csv: no column 'target' \(--columns label="):
        load(tmp_path, columns={"label": "target"})


def test_pairs_in_one_split_only(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 100)
    write(tmp_path / "dev.csv", text_a=["a"] * 9, text_b=["b"] * 9, label=[0] * 8 + [1])
    with pytest.raises(DataError, match=r"dev.csv has pairs of texts, .*train.csv has single"):
        load(tmp_path)
