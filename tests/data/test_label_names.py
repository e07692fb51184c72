"""What label values mean: by name, by the data's own names, by --labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.data.class_names import class_names
from prumux.optimizer.data.rows import Rows, read_rows
from prumux.optimizer.data.splits import load_splits
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.tokens import Tokens
from tests.helpers.datafiles import TASK, ids, write

SWAPPED = {"negative": "positive", "positive": "negative"}
NER = Tokens(("O", "B-PER", "I-PER"))
PLAIN = Classification(("LABEL_0", "LABEL_1"))


def named(path: Path, feature: Any, column: str = "label", **columns: list[Any]) -> Path:
    """A parquet file as the datasets library writes it."""
    meta = json.dumps({"info": {"features": {column: feature}}})
    table = pyarrow.table(columns).replace_schema_metadata({"huggingface": meta})
    pyarrow.parquet.write_table(table, path)
    return path


def of(names: list[str]) -> dict[str, Any]:
    return {"_type": "ClassLabel", "names": names}


def rows_of(folder: Path, values: list[Any], labels: dict[str, str], kind: str) -> Rows:
    texts = [f"text {i}" for i in range(len(values))]
    file = write(folder / f"rows.{kind}", text=texts, label=values)
    return read_rows(file, TASK, labels=labels)


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        ([0, 1, 1], {"0": "positive", "1": "negative"}, [1, 0, 0]),
        ([0, 1, 1], {"0": "1", "1": "0"}, [1, 0, 0]),
        ([0, 1, 1], SWAPPED, [1, 0, 0]),
        (["negative", "positive", "positive"], SWAPPED, [1, 0, 0]),
        (
            ["neg", "Pos ", "meh"],
            {"NEG": "negative", "pos": "positive", "meh": "0"},
            [0, 1, 0],
        ),
        (["bad", "positive", "bad"], {"bad": "negative"}, [0, 1, 0]),
        ([4, 1, 1], {"4": "negative"}, [0, 1, 1]),
    ],
)
def test_labels_are_what_the_user_says(
    tmp_path: Path, kind: str, values: list[Any], labels: dict[str, str], expected: list[int]
) -> None:
    found = rows_of(tmp_path, values, labels, kind)
    assert ids(found) == expected
    assert found.notes[-1].startswith("labels as --labels says: ")
    assert len(found.labels_used) == len(labels)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (
            {"0": "good"},
            "--labels 0=good: the model has no class 'good'\nits classes are: neg",
        ),
        ({"0": "2"}, "the model has no class '2'"),
    ],
)
def test_classes_that_the_model_does_not_have(
    tmp_path: Path, labels: dict[str, str], said: str
) -> None:
    with pytest.raises(UsageError) as caught:
        rows_of(tmp_path, [0, 1], labels, "csv")
    assert said in str(caught.value)


def test_values_that_nothing_explains(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"row 2: label 'huh' is neither in --labels nor one"):
        rows_of(tmp_path, ["neg", "huh"], {"neg": "negative"}, "csv")


def test_a_key_that_no_row_has_is_refused(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        texts = [f"{name} {i}" for i in range(64)]
        write(tmp_path / f"{name}.csv", text=texts, label=[i % 2 for i in range(64)])

    def load(labels: dict[str, str]) -> Any:
        return load_splits(str(tmp_path), None, None, None, None, TASK, labels=labels)

    with pytest.raises(DataError, match="--labels negtive=positive: no row has the label"):
        load({"negtive": "positive"})
    swapped = load(SWAPPED)
    assert "labels as --labels says: 'negative' = 'positive'" in swapped.notes[-1]
    assert swapped.digest() != load({}).digest()


@pytest.mark.parametrize(
    ("names", "expected", "said"),
    [
        (["Positive", "Negative"], [1, 0, 0], "labels by name: the data has 0 = Positive"),
        (["negative", "positive"], [0, 1, 1], ""),
        (["bad", "good"], [0, 1, 1], "labels by number: the data's 0 = bad, 1 = good are"),
    ],
)
def test_class_names_of_a_parquet_file(
    tmp_path: Path, names: list[str], expected: list[int], said: str
) -> None:
    file = named(tmp_path / "a.parquet", of(names), text=["a", "b", "c"], label=[0, 1, 1])
    found = read_rows(file, TASK)
    assert ids(found) == expected
    assert "".join(found.notes).startswith(said)
    assert bool(found.notes) == bool(said)


def test_class_names_that_the_model_lacks_are_keys(tmp_path: Path) -> None:
    file = named(
        tmp_path / "a.parquet", of(["neg", "pos"]), text=["a", "b", "c"], label=[0, 1, -1]
    )
    swapped = {"neg": "LABEL_1", "pos": "LABEL_0"}
    with pytest.raises(DataError, match="label -1 is not in"):
        read_rows(file, PLAIN, labels=swapped)
    named(file, of(["neg", "pos"]), text=["a", "b", "c"], label=[0, 1, 1])
    assert ids(read_rows(file, PLAIN, labels=swapped)) == [1, 0, 0]
    assert ids(read_rows(file, PLAIN)) == [0, 1, 1]


@pytest.mark.parametrize("form", ["Sequence", "List", "bare"])
def test_tags_have_names_too(tmp_path: Path, form: str) -> None:
    inner = of(["O", "I-PER", "B-PER"])
    feature = [inner] if form == "bare" else {"_type": form, "feature": inner}
    file = named(
        tmp_path / "a.parquet", feature, "tags",
        tokens=[["a", "b"], ["c"]], tags=[[2, 1], [0]],
    )  # fmt: skip

    def tags(**options: Any) -> list[list[int]]:
        return [x.tolist() for x in read_rows(file, NER, **options).labels or ()]

    assert tags() == [[1, 2], [0]]
    assert tags(labels={"B-PER": "O"}) == [[0, 2], [0]]


@pytest.mark.parametrize(
    "metadata",
    [
        b"", b"{", b"[]", b'{"info": 3}', b'{"info": {"features": []}}', b"\xff",
        b'{"info": {"features": {"label": {"_type": "ClassLabel", "names": [1, 2]}}}}',
        b'{"info": {"features": {"label": {"_type": "Value", "names": ["a"]}, "x": 3}}}',
        None,
    ],
)  # fmt: skip
def test_metadata_of_another_kind_names_nothing(metadata: bytes | None) -> None:
    assert class_names(metadata) == {}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_labels_settle_numbers_that_may_be_ids_or_names(tmp_path: Path, kind: str) -> None:
    file = write(tmp_path / f"rows.{kind}", text=["a", "b", "c"], label=[1, 2, 1])
    task = Classification(("1", "2", "3"))
    with pytest.raises(DataError, match="may be ids"):
        read_rows(file, task)
    with pytest.raises(DataError, match="may be ids"):
        read_rows(file, task, labels={"1": "1"})
    assert ids(read_rows(file, task, labels={"1": "1", "2": "2"})) == [0, 1, 0]
    assert ids(read_rows(file, task, labels={"1": "2", "2": "3"})) == [1, 2, 1]


def test_class_names_settle_numbers_that_may_be_ids_or_names(tmp_path: Path) -> None:
    task = Classification(("1", "2", "3"))
    for names, expected in ((["1", "2", "3"], [1, 2]), (["3", "2", "1"], [1, 0])):
        file = named(tmp_path / "x.parquet", of(names), text=["a", "b"], label=[1, 2])
        assert ids(read_rows(file, task)) == expected
