"""Label columns as numbers, and what is wrong with them."""

from typing import NoReturn

import numpy as np
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.tokens import Tokens

NAMES = Classification(("Bad", "good"))
BAD_GOOD = Classification(("bad", "good"))
SCORE = Regression(("score",))
TAGS = Tokens(("O", "B-X"))


def fail(row: int | None, text: str) -> NoReturn:
    raise DataError(f"row {row}: {text}")


@pytest.mark.parametrize(
    "values",
    [[0, 1], ["0", "1"], ["bad", " Good "], [0.0, 1.0], ["0.0", "1.0"], [False, True]],
)
def test_class_ids(values: list[object]) -> None:
    found = NAMES.read_labels(values, None, fail)
    assert found is not None
    assert found.dtype == np.int64
    assert found.tolist() == [0, 1]


def test_names_that_look_like_ids() -> None:
    stars = Classification(("1", "2", "3"))
    names: list[list[object]] = [["1", "3"], [1, 2, 3], [3.0, 1]]
    for values in names:
        expected = [int(str(x)[0]) - 1 for x in values]
        assert stars.read_labels(values, None, fail).tolist() == expected  # type: ignore[union-attr]
    for ids in (["0", "1"], [0, 1, 2], [0, 1]):
        assert stars.read_labels(ids, None, fail).tolist() == list(map(int, ids))  # type: ignore[union-attr]


@pytest.mark.parametrize("values", [[1, 2], ["1", "2"], [2], [1, -1]])
def test_labels_that_may_be_ids_or_names(values: list[object]) -> None:
    stars = Classification(("1", "2", "3"))
    with pytest.raises(DataError, match=r"ids \(0\.\.2\) or names \(1, 2, 3\).*") as caught:
        stars.read_labels(values, None, fail)
    one = 2 if values == [2] else 1
    assert f"--labels {one}={one} ... if they are names" in str(caught.value)
    assert f"--labels {one}={one + 1} ... if they are ids" in str(caught.value)


def test_names_that_differ_in_case_only() -> None:
    assert Classification(("A", "a")).read_labels(["a", "A"], None, fail).tolist() == [1, 0]  # type: ignore[union-attr]


def test_hidden_labels() -> None:
    assert NAMES.read_labels([-1, -1], None, fail) is None
    assert SCORE.read_labels([-1.0, -1.0], None, fail) is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 2], r"row 1: label 2 is out of range, the model has 2 labels \(0..1\)"),
        ([0, -1], r"row 1: label -1 is not in 0..1: remove the row"),
        ([0, None], "row 1: the label is empty"),
        ([0, 0.5], "row 1: label 0.5 is neither an id nor one of the model's: Bad, good"),
        (["good", "ugly"], "row 1: label 'ugly' is neither"),
        ([0, [1]], r"row 1: label \[1\] is neither"),
        ([0, float("inf")], "row 1: label inf is neither"),
        ([1, 1], r"row None: all 2 rows have the label 1 \('good'\), the model knows 2"),
    ],
)
def test_bad_class_ids(values: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        NAMES.read_labels(values, None, fail)


def test_scores() -> None:
    assert SCORE.read_labels(["2.5", 3, 1.0], None, fail).tolist() == [2.5, 3.0, 1.0]  # type: ignore[union-attr]
    for bad in ("x", None, float("nan"), "inf", True, [1], 10**400):
        with pytest.raises(DataError, match=r"row 1: score .* is not a finite number"):
            SCORE.read_labels([1.0, bad], None, fail)


def test_tags() -> None:
    words = (("a", "b"), ("c",))
    found = TAGS.read_labels([[0, -100], [1]], words, fail)
    assert [x.tolist() for x in found] == [[0, -100], [1]]
    named = TAGS.read_labels([["O", "B-X"], ["O"]], words, fail)
    assert [x.tolist() for x in named] == [[0, 1], [0]]
    with pytest.raises(DataError, match="row 1: label 7 is out of range"):
        TAGS.read_labels([[0, 1], [7]], words, fail)
    with pytest.raises(DataError, match="row 0: 2 tokens but 1 tags: give each token one tag"):
        TAGS.read_labels([[0], [1]], words, fail)
    with pytest.raises(DataError, match="row 1: the tags are 'O', not a list"):
        TAGS.read_labels([[0, 1], "O"], words, fail)


def test_the_row_without_a_known_name_is_reported() -> None:
    with pytest.raises(DataError, match="row 2: label 'ugly' is neither an id nor one of"):
        BAD_GOOD.read_labels(["good", "bad", "ugly", "good"], None, fail)
    with pytest.raises(DataError, match="row 1: label 1 is neither an id nor one of"):
        BAD_GOOD.read_labels(["good", 1], None, fail)
