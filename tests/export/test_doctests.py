"""The examples in docstrings give the results that they show."""

from __future__ import annotations

import doctest
from importlib import import_module

import pytest


@pytest.mark.parametrize(
    ("name", "examples"),
    [("graph.sensitivity", 1), ("graph.parity", 1), ("triton.pbtxt", 1), ("triton.packer", 1)],
)
def test_examples(name: str, examples: int) -> None:
    found = doctest.testmod(import_module(f"prumux.export.{name}"))
    assert (found.failed, found.attempted) == (0, examples)
