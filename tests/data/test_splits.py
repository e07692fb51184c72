"""Giving rows their roles, from files and from hub data sets."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prumux.optimizer.base.errors import DataError, MissingError
from prumux.optimizer.data.rows import Splits, read_rows
from prumux.optimizer.data.splits import load_splits
from tests.helpers.datafiles import TASK, ids, labelled, write


def load(folder: Path, **options: Any) -> Splits:
    defaults: dict[str, Any] = {
        "data": str(folder), "train": None, "validation": None, "test": None, "beside": None,
        "task": TASK, "columns": {}, "seed": 0,
    }  # fmt: skip
    return load_splits(**(defaults | options))


def sizes(splits: Splits) -> tuple[int, int, int, int | None]:
    test = None if splits.test is None else len(splits.test)
    return len(splits.fit), len(splits.select), len(splits.certify), test


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train": 400, "validation": 50, "test": 30}, (300, 100, 50, 30)),
        ({"train": 400, "dev": 50}, (300, 100, 50, None)),
        ({"train": 9000, "validation": 50}, (6952, 2048, 50, None)),
        ({"validation": 40}, (10, 10, 20, None)),
        ({"validation": 41, "test": 30}, (10, 10, 21, 30)),
    ],
)
def test_roles(
    tmp_path: Path, files: dict[str, int], expected: tuple[int, int, int, int | None]
) -> None:
    for name, rows in files.items():
        labelled(tmp_path / f"{name}.csv", rows)
    splits = load(tmp_path)
    assert sizes(splits) == expected
    texts = [x for part in (splits.fit, splits.select, splits.certify) for x in part.text_a]
    assert len(set(texts)) == len(texts)
    assert "fit" in splits.notes[0]
    assert load(tmp_path).digest() == splits.digest()
    assert load(tmp_path, seed=1).digest() != splits.digest()


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"train": 101}, (25, 25, 51, None)),
        ({"train": 101, "test": 30}, (25, 25, 51, 30)),
        ({"train": 400, "validation": 50}, (300, 100, 50, None)),
    ],
)
def test_certify_on_train(
    tmp_path: Path, files: dict[str, int], expected: tuple[int, int, int, int | None]
) -> None:
    for name, rows in files.items():
        labelled(tmp_path / f"{name}.csv", rows)
    splits = load(tmp_path, certify_on_train=True)
    assert sizes(splits) == expected
    said = "--certify-on-train: not used" if "validation" in files else "by heart"
    assert [said in x for x in splits.warnings] == [True]


@pytest.mark.parametrize(
    ("names", "cures"),
    [
        (["train"], ["--validation FILE", "--certify-on-train"]),
        (
            ["train", "test"],
            ["--validation FILE, or those", "--validation test", "--certify-on-train"],
        ),
        (["test"], ["--validation FILE, or those", "--validation test"]),
    ],
)
def test_no_rows_that_may_certify(tmp_path: Path, names: list[str], cures: list[str]) -> None:
    for name in names:
        labelled(tmp_path / f"{name}.csv", 100)
    with pytest.raises(DataError, match="no validation rows to certify on, only") as caught:
        load(tmp_path)
    message = str(caught.value)
    assert len(message.splitlines()) <= 5
    assert [x for x in cures if x not in message] == []
    assert ("--certify-on-train" in message) == ("train" in names)


def test_roles_do_not_depend_on_row_order(tmp_path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "text": [f"row {i}" for i in range(64)],
        "label": [i % 2 for i in range(64)],
    }
    write(tmp_path / "a/train.csv", **rows)
    write(tmp_path / "b/train.csv", **{k: v[::-1] for k, v in rows.items()})
    a, b = (load(tmp_path / x, certify_on_train=True) for x in "ab")
    assert a.digest() == b.digest()


def test_duplicates_leave_fit_and_select(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 100, "same")
    labelled(tmp_path / "validation.csv", 10, "same")
    write(
        tmp_path / "test.csv", text=[f"same {i}" for i in range(90, 99)], label=[0] * 8 + [1]
    )
    splits = load(tmp_path)
    held = {*splits.certify.text_a, *splits.test.text_a}  # type: ignore[union-attr]
    assert not held & {*splits.fit.text_a, *splits.select.text_a}
    assert (len(splits.fit) + len(splits.select), len(splits.certify)) == (81, 10)
    dropped = next(x for x in splits.notes if x.startswith("dropped"))
    counts = [int(x) for x in dropped.split() if x.isdigit()]
    assert sum(counts) == 19


def test_files_win_over_the_folder_and_the_model(tmp_path: Path) -> None:
    labelled(tmp_path / "d/train.csv", 100)
    labelled(tmp_path / "d/validation.csv", 20)
    other = labelled(tmp_path / "other.jsonl", 30)
    assert sizes(load(tmp_path / "d", validation=str(other))) == (75, 25, 30, None)
    model = tmp_path / "d/model.pt"
    model.touch()
    beside = {"data": None, "beside": model}
    assert sizes(load(tmp_path, **beside)) == (75, 25, 20, None)
    assert sizes(load(tmp_path, **beside | {"beside": model.parent})) == (75, 25, 20, None)
    only = load(tmp_path, **beside, validation=labelled(tmp_path / "v.csv", 40))
    assert sizes(only) == (10, 10, 20, None)


def test_unlabelled(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", text=[f"t{i}" for i in range(40)])
    splits = load(tmp_path, certify_on_train=True)
    assert splits.certify.labels is None
    assert splits.warnings[0].startswith(
        "train: it has no labels (no column 'label' or 'labels'; its columns are: text): "
        "the budget is on agreement with the given model; "
    )
    labelled(tmp_path / "validation.csv", 40)
    splits = load(tmp_path)
    assert sizes(splits) == (10, 10, 20, None)
    assert splits.warnings[0].startswith("train: not used, it has no labels (")
    agreement = load(tmp_path, metric="agreement")
    assert sizes(agreement) == (30, 10, 40, None)
    assert agreement.warnings == ()


def test_a_test_file_with_an_empty_label_column_is_not_used(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 40)
    labelled(tmp_path / "validation.csv", 10)
    write(tmp_path / "test.csv", text=["x"] * 9, label=[None] * 9)
    splits = load(tmp_path)
    assert sizes(splits) == (30, 10, 10, None)
    said = "test: not used, it has no labels (its column 'label' is empty)"
    assert splits.warnings == (said,)


def test_labels_json_beside_the_data_is_left_alone(tmp_path: Path) -> None:
    labelled(tmp_path / "validation.csv", 40)
    before = load(tmp_path).digest()
    (tmp_path / "labels.json").write_text(json.dumps({"labels": ["no", "yes"]}))
    assert load(tmp_path).digest() == before
    assert load(tmp_path).warnings == ()


def test_no_data(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="no data is given: use --data DIR with train"
    ) as caught:
        load(tmp_path, data=None)
    assert "--train FILE --validation FILE" in str(caught.value)
    with pytest.raises(DataError, match="holds no data: use --data DIR"):
        load(tmp_path, data=None, beside=tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load(tmp_path / "not/there/at/all")


def test_too_few_rows(tmp_path: Path) -> None:
    labelled(tmp_path / "train.csv", 31)
    with pytest.raises(
        DataError, match=r"fit has 7 rows, 8 are needed: give more data\n.*31 rows"
    ):
        load(tmp_path, certify_on_train=True)
    labelled(tmp_path / "validation.csv", 7)
    with pytest.raises(DataError, match="select has 7 rows, 8 are needed"):
        load(tmp_path)
    labelled(tmp_path / "train.csv", 100)
    with pytest.raises(DataError, match="certify has 7 rows, 8 are needed"):
        load(tmp_path)


class HubSplit:
    """As much of `datasets.Dataset` as is used."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None = None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {k: SimpleNamespace() for k in columns}
        if names:
            self.features["label"] = SimpleNamespace(names=names)

    def __len__(self) -> int:
        return len(self.columns["text"])

    def __getitem__(self, name: str) -> Iterator[Any]:
        return iter(self.columns[name])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def install(load_dataset: Callable[..., Any]) -> None:
        monkeypatch.setitem(
            sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset)
        )

    return install


def test_hub(hub: Callable[..., None]) -> None:
    asked: list[tuple[str, str | None]] = []

    def load_dataset(name: str, config: str | None) -> dict[str, HubSplit]:
        asked.append((name, config))

        def split(key: str, rows: int, label: Callable[[int], int]) -> HubSplit:
            texts, labels = (
                [f"{key} {i}" for i in range(rows)],
                [label(i) for i in range(rows)],
            )
            return HubSplit({"text": texts, "label": labels}, ["Positive", "Negative"])

        return {
            "train": split("t", 40, lambda i: i % 2),
            "validation_matched": split("v", 10, lambda i: i % 2),
            "test": split("x", 10, lambda _: -1),
            "unsupervised": split("u", 10, lambda _: -1),
        }

    hub(load_dataset)
    splits = load(Path(), data="glue/set:sst2")
    assert asked[0] == ("glue/set", "sst2")
    assert sizes(splits) == (30, 10, 10, None)
    assert splits.warnings == (
        "not used: glue/set:sst2 unsupervised, which has no usual name of a split",
        "test: not used, it has no labels (all are -1)",
    )
    # The data set numbers its classes the other way round than the model.
    assert ids(read_rows("glue/set", TASK, split="validation")) == [1, 0] * 5
    with pytest.raises(
        DataError, match=r"has no 'dev' split; it has: test, train, unsup.*, valid"
    ):
        read_rows("glue/set", TASK, split="dev")


def test_hub_fails(hub: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, config: str | None) -> None:
        raise ConnectionError(f"{name} {config} cannot be reached\nand more")

    hub(load_dataset)
    with pytest.raises(
        DataError, match=r"'some/set' is no file .* failed: some/set None cannot be"
    ):
        load(Path(), data="some/set")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingError, match=r"pip install 'prumux\[hub\]'") as caught:
        load(Path(), data="some/set")
    assert caught.value.exit_code == 5


def test_a_hub_data_set_without_validation(hub: Callable[..., None]) -> None:
    def load_dataset(name: str, config: str | None) -> dict[str, HubSplit]:
        del name, config
        return {
            key: HubSplit(
                {"text": [f"{key} {i}" for i in range(rows)], "label": [0, 1] * (rows // 2)}
            )
            for key, rows in (("train", 40), ("test", 20))
        }

    hub(load_dataset)
    with pytest.raises(DataError, match="or those of the test split: --validation test"):
        load(Path(), data="some/set")
    splits = load(Path(), data="some/set", validation="test")
    assert sizes(splits) == (30, 10, 20, None)
    assert splits.certify.text_a[0] == "test 0"


def test_a_hub_data_set_with_two_validation_splits(hub: Callable[..., None]) -> None:
    def load_dataset(name: str, config: str | None) -> dict[str, HubSplit]:
        del name, config
        return {key: HubSplit({"text": [key], "label": [0]}) for key in ("val", "dev")}

    hub(load_dataset)
    with pytest.raises(DataError, match="'some/set' has both some/set val and some/set dev"):
        load(Path(), data="some/set")
