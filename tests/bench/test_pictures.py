"""bench/pictures.py: what it draws is what the results say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.scripts import BENCH, script

PICTURES = script("pictures")


def test_throughput_is_that_of_the_engine_of_each_run() -> None:
    timed = json.loads((BENCH / "results" / PICTURES.BENCH).read_text(encoding="utf-8"))
    ratios = {x["throughput_ratio"] for x in timed["entries"]}
    shipped = PICTURES.read_all()
    assert len({x.throughput for x in shipped} & ratios) == len(shipped) == 4
    for x in shipped:
        assert x.certified <= x.bound <= x.budget_points
        assert x.low <= x.throughput <= x.high


def test_another_result_gives_another_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first, *others = PICTURES.read_all()
    moved = [replace(first, certified=first.certified + 0.3), *others]
    drawn = {}
    for name, shipped in (("a", [first, *others]), ("b", moved), ("c", [first, *others])):
        PICTURES.draw_frontier(shipped, tmp_path / name)
        drawn[name] = (tmp_path / name).read_bytes()
    assert drawn["a"].startswith(b"\x89PNG")
    assert drawn["a"] == drawn["c"] != drawn["b"]
