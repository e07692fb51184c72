"""The loss budget's text form."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.certificate.budget import Budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2%", Budget(0.02, relative=False)),
        ("2%rel", Budget(0.02, relative=True)),
        (" 2 % rel ", Budget(0.02, relative=True)),
        ("0.5 %", Budget(0.005, relative=False)),
        (".5%", Budget(0.005, relative=False)),
        ("0%", Budget(0.0, relative=False)),
        ("99.9%", Budget(0.999, relative=False)),
    ],
)
def test_parse(text: str, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "budget '' is not a percentage: write, say, --budget 2%"),
        ("abc", "budget 'abc' is not a percentage: write, say, --budget 2%"),
        ("nan%", "budget 'nan%' is not a percentage"),
        ("2rel", "budget '2rel' is not a percentage"),
        ("1e2%", "budget '1e2%' is not a percentage"),
        ("2", "budget '2' has no unit: write --budget 2%"),
        ("0.02", "budget '0.02' has no unit: write --budget 2% or --budget 0.02%"),
        (
            "-1%",
            "budget '-1%' is -1 %, allowed is 0 % to below 100 %: write, say, --budget 2%",
        ),
        ("200%", "budget '200%' is 200 %, allowed is 0 % to below 100 %"),
        ("100%rel", "budget '100%rel' is 100 %, .*: write, say, --budget 2%rel"),
    ],
)
def test_bad_text_shows_the_corrected_call(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Budget.parse(text)


@pytest.mark.parametrize("points", [-0.01, 1.0, float("nan")])
def test_bad_number(points: float) -> None:
    with pytest.raises(UsageError, match=r"is not in \[0, 1\): for 2 points write 0.02"):
        Budget(points)


@given(st.floats(0, 1, exclude_max=True, allow_subnormal=False), st.booleans())
def test_print_and_parse_are_inverse(points: float, relative: bool) -> None:
    budget = Budget(points, relative)
    assert Budget.parse(str(budget)) == budget


def test_text() -> None:
    assert str(Budget(0.02)) == "2%"
    assert str(Budget(0.005, relative=True)) == "0.5%rel"
    assert str(Budget(0.1)) == "10%"


def test_limit_is_in_the_metrics_units() -> None:
    assert Budget(0.02).limit(0.9) == 0.02
    assert Budget(0.02, relative=True).limit(0.9) == pytest.approx(0.018)
    assert Budget(0.02, relative=True).limit(-0.5) == pytest.approx(0.01)
