"""Reading tables from all formats, and what damaged files say."""

from pathlib import Path

import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.rows import read_rows
from tests.helpers.datafiles import FORMATS, TASK, ids, labelled, text, write


@pytest.mark.parametrize("ending", FORMATS)
def test_formats(tmp_path: Path, ending: str) -> None:
    texts = ['a "quoted", text', "two\nlines", "NA", "tab\there", "naïve ☃"]
    path = write(tmp_path / f"x.{ending}", text=texts, label=[0, 1, 0, 1, 1])
    rows = read_rows(path, TASK)
    assert rows.text_a == tuple(texts)
    assert rows.text_b is None
    assert ids(rows) == [0, 1, 0, 1, 1]
    assert read_rows(str(path), TASK).digest() == rows.digest()


def test_tsv_with_lone_quotes(tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text('sentence\tlabel\n"good film\t1\nbad" film\t0\n"x ""y"""\t1\n')
    assert read_rows(path, TASK).text_a == ('"good film', 'bad" film', 'x "y"')


def test_byte_order_mark_and_windows_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes("\ufefftext,label\r\na,0\r\n\r\nb,1\r\n".encode())
    assert read_rows(path, TASK).text_a == ("a", "b")


def test_long_field(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", text=["a" * 200_000, "b"], label=[0, 1])
    assert len(read_rows(path, TASK).text_a[0]) == 200_000


def test_json_keeps_unusual_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a\u2028b", "label": 0}\n{"text": "c", "label": 1}\n', "utf-8")
    assert read_rows(path, TASK).text_a == ("a\u2028b", "c")


BAD_FILES: list[tuple[str, str | bytes, str]] = [
    ("x.txt", "a", r"x.txt: the ending '.txt' is none of .parquet, .jsonl, .json, .csv, .tsv"),
    ("x.csv", "", r"x.csv has 0 rows: give a file with at least 8"),
    ("x.csv", "text,label\n", "has 0 rows"),
    ("x.tsv", "", "has 0 rows"),
    ("x.jsonl", "\n", "has 0 rows"),
    ("x.csv", b"text,label\na,1\n\xff,0\n", "line 3 is not UTF-8: save the file as UTF-8"),
    ("x.csv", 'text,label\na,1\n"b,0\n', r"row 2 cannot be read \(unexpected end of data\)"),
    ("x.csv", "text,label\na,1\nb,0,3\n", "row 2 has 3 fields, the header has 2: quote"),
    ("x.csv", "text,label\na,1\nb\n", "row 2 has 1 fields, the header has 2"),
    ("x.tsv", "text\tlabel\na\t1\nb\n", "row 2 has 1 fields, the header has 2"),
    ("x.csv", "text,text\na,1\n", "has two columns named 'text': rename one"),
    ("x.jsonl", '{"text": "a"}\n{"text": ', "row 2 is not JSON .*the file may be cut off"),
    (
        "x.json",
        '[["a", 1]]',
        "row 1 is a list, not an object: write objects as .* one per line",
    ),
    ("x.jsonl", "[" * 100_000, "row 1 is not JSON"),
    ("x.parquet", b"PAR1 and then nothing", "cannot be read as parquet .*: it may be cut off"),
]


@pytest.mark.parametrize(("name", "content", "message"), BAD_FILES)
def test_bad_files(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_rows(text(tmp_path / name, content), TASK)
    assert name in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5


def test_truncated_parquet(tmp_path: Path) -> None:
    path = labelled(tmp_path / "x.parquet", 50)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(DataError, match="cannot be read as parquet"):
        read_rows(path, TASK)


def test_find_files(tmp_path: Path) -> None:
    for name in (
        "train.csv",
        "dev.jsonl",
        "test.tsv",
        "labels.json",
        "config.json",
        "train.txt",
    ):
        (tmp_path / name).touch()
    found = find_files(tmp_path)
    assert {k: [x.name for x in v] for k, v in found.items()} == {
        "train": ["train.csv"],
        "validation": ["dev.jsonl"],
        "test": ["test.tsv"],
    }
    (tmp_path / "train.parquet").touch()
    with pytest.raises(
        DataError, match=r"holds both train.csv and train.parquet: keep one, or na"
    ):
        find_files(tmp_path)
    with pytest.raises(DataError, match="none is not a folder: give one that holds train"):
        find_files(tmp_path / "none")


def test_shards(tmp_path: Path) -> None:
    # Sorted by label: one shard may hold one class only.
    write(tmp_path / "data/train-00000-of-00002.parquet", text=["a", "b"], label=[0, 0])
    with pytest.raises(
        DataError, match="1 of 2 shards of 'train' are there: fetch the others"
    ):
        find_files(tmp_path)
    second = tmp_path / "data/train-00001-of-00002.parquet"
    write(second, text=["c", "d"], label=[1, 1])
    assert len(find_files(tmp_path)["train"]) == 2
    rows = read_rows(tmp_path, TASK)
    assert (rows.text_a, ids(rows)) == (("a", "b", "c", "d"), [0, 0, 1, 1])
    write(second, text=["c", "d"], label=[1, 5])
    with pytest.raises(
        DataError, match=r"train-00001-of-00002.parquet, row 2: label 5 is out"
    ):
        read_rows(tmp_path, TASK)
    write(second, sentence=["c", "d"], label=[1, 1])
    with pytest.raises(
        DataError, match=r"has columns label, sentence; .* has label, text: the"
    ):
        read_rows(tmp_path, TASK)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_pointer_of_git_lfs_is_named(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"train.{ending}"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(DataError, match=r"is a Git LFS pointer.*\nrun: git lfs install"):
        read_rows(path, TASK)
