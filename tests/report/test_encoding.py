"""Reports as dataclasses and as JSON: nothing is lost, and what does not fit is named."""

from __future__ import annotations

import copy
import json
from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.report import contents
from prumux.optimizer.report.contents import LayerSizes, Pair
from prumux.optimizer.report.encoding import fields_of, from_json, metadata, to_json
from prumux.optimizer.report.units import Bytes, Unit
from tests.helpers.reports import KINDS, RESULTS, as_report, changed, recorded

REPORTS = sorted(
    path.stem
    for path in RESULTS.glob("*.json")
    if {"trials", "mux"} <= json.loads(path.read_text(encoding="utf-8")).keys()
)
ADDED = {
    *("beside", "cascade", "costs", "expected_loss", "files", "predicted_ratio", "vocabulary"),
    "warnings",
}
"""Fields that older reports do not have and that are written with their defaults."""


def without(values: Any, names: set[str]) -> Any:
    """The same JSON values without fields of these names."""
    if isinstance(values, dict):
        return {k: without(x, names) for k, x in values.items() if k not in names}
    return [without(x, names) for x in values] if isinstance(values, list) else values


@pytest.mark.parametrize("name", REPORTS)
def test_nothing_is_lost(name: str) -> None:
    values = recorded(name)
    found = to_json(as_report(values))
    assert without(found, ADDED) == without(values, ADDED)
    assert as_report(found) == as_report(values)
    assert found["date"] == values["date"]


@pytest.mark.parametrize("kind", KINDS)
def test_json_comes_back_as_the_same_report(kind: str) -> None:
    report = as_report(changed(kind))
    assert as_report(json.loads(json.dumps(to_json(report)))) == report


def test_there_are_recorded_reports() -> None:
    assert len(REPORTS) >= 8


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["met"], None, "met is None, not true or false"),
        (["seed"], True, "seed is True, not a whole number"),
        (["scores", "certify", "rows"], 1.5, "scores.certify.rows is 1.5, not a whole number"),
        (
            ["scores", "certify", "interval"],
            [1],
            "scores.certify.interval is [1], not a list of 2",
        ),
        (["trials", 0, "loss"], "0.1", "trials[0].loss is '0.1', not a number"),
        (["speed", "dense"], [], "speed.dense is [], not an object"),
        (["file_bytes", "dense"], "1", "file_bytes.dense is '1', not a whole number"),
        (["serving", "length"], "long", "serving.length is 'long', not 'data'"),
        (["versions", "python"], 3, "versions.python is 3, not a text"),
        (["passes"], {}, "passes is {}, not a list"),
        (["schema_version"], 2, "schema_version is 2, not 1"),
    ],
)
def test_what_does_not_fit_is_named(path: list[Any], value: Any, said: str) -> None:
    values = copy.deepcopy(recorded())
    inner = values
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(UsageError) as caught:
        as_report(values)
    assert str(caught.value) == f"'report.json' is no report: {said}"


def test_a_field_that_is_missing_is_named() -> None:
    values = recorded()
    del values["cost"]["dense"]["macs"]
    with pytest.raises(UsageError, match=r"cost\.dense\.macs is missing"):
        as_report(values)


def test_fields_of_later_versions_are_ignored() -> None:
    values = recorded()
    assert as_report({**values, "later": 1}) == as_report(values)


def test_generic_dataclasses_know_what_they_hold() -> None:
    assert from_json(Pair[Bytes], {"dense": 1, "optimised": 2}) == Pair(1, 2)
    hints = {name: hint for name, hint, _ in fields_of(Pair[Bytes])}
    assert metadata(hints["dense"])[0].name == "bytes"


def test_none_is_left_out_where_that_is_said() -> None:
    sizes = LayerSizes((1,), (2,), 3, (4,), (5,))
    assert "hidden_dense" not in to_json(sizes)
    assert to_json(as_report(changed("no budget")))["budget"] is None


def test_every_field_is_described() -> None:
    kinds = [x for x in vars(contents).values() if is_dataclass(x) and isinstance(x, type)]
    assert len(kinds) > 15
    for kind in kinds:
        assert kind.__doc__
        if kind is Unit:
            continue
        assert len(fields(kind)) == len(list(fields_of(kind)))
        for name, hint, _ in fields_of(kind):
            (text,) = (x for x in metadata(hint) if isinstance(x, str))
            assert text.endswith("."), f"{kind.__name__}.{name}"
