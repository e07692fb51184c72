"""Whether two engines give the same numbers."""

import math

import numpy as np
import pytest

from prumux.export.graph.parity import Parity, check, compare
from prumux.optimizer.base.errors import GateError
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.tokens import Tokens

CLASSES = Classification(("no", "yes"))
TAGS = Tokens(("O", "X"))


def test_parity_counts_real_positions_only() -> None:
    a = np.zeros((2, 3, 2), np.float32)
    b = a.copy()
    b[0, 1, 1], b[1, 2, 0] = 0.5, 9.0
    mask = np.array([[1, 1, 1], [1, 1, 0]])
    found = compare([a], [b], TAGS, [mask])
    assert (found.max_abs_diff, found.agreement, found.rows) == (0.5, 0.8, 5)
    with pytest.raises(ValueError, match="need the attention masks"):
        compare([a], [b], TAGS)


def test_parity_counts_rows_that_are_not_finite() -> None:
    found = compare([np.zeros((3, 2))], [np.array([[0, 1], [math.nan, 0], [math.inf, 1]])],
                    CLASSES)  # fmt: skip
    assert (found.broken, found.rows) == (2, 3)


def test_parity_of_rows() -> None:
    a = [np.array([[0.0, 1.0]]), np.array([[2.0, 1.0], [0.0, 3.0]])]
    b = [np.array([[0.0, 1.5]]), np.array([[1.0, 1.25], [0.0, 3.0]])]
    found = compare(a, b, CLASSES)
    assert (found.max_abs_diff, found.rows) == (1.0, 3)
    assert found.agreement == pytest.approx(2 / 3)
    with pytest.raises(GateError, match=r"logits of shape \(1, 3\), expected \(1, 2\)"):
        compare(a[:1], [np.zeros((1, 3))], CLASSES)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_nan_never_passes(bad: float) -> None:
    found = compare([np.zeros((1, 2))], [np.array([[0.0, bad]])], CLASSES)
    with pytest.raises(GateError, match=rf"differ by up to {bad}"):
        check(found, 1e-4, "x against y")


def test_within_the_limit_passes() -> None:
    check(Parity(1e-4, 1.0, 3), 1e-4, "x against y")
