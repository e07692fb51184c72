"""The histogram of a cascade's margins."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prumux.optimizer.report.html import render
from prumux.optimizer.report.margin_bars import margin_bars
from prumux.optimizer.report.terminal import table_rows
from tests.helpers.reports import as_report, changed


def test_bars_stand_side_by_side_and_the_threshold_between_them() -> None:
    record = as_report(changed("cascade")).cascade
    assert record is not None
    drawn = margin_bars(record)
    assert len(drawn.bars) == len(record.margins)
    for bar, after in zip(drawn.bars, drawn.bars[1:], strict=False):
        assert bar.x < bar.x + bar.width < after.x
        assert bar.y < after.y < drawn.bottom  # fewer rows, so lower
        assert bar.y < bar.differ_y <= drawn.bottom
    assert drawn.threshold is not None
    assert drawn.bars[1].x < drawn.threshold < drawn.bars[2].x  # 0.8 is in the second bar
    assert drawn.bars[0].title == (
        "margins 0.00 to 0.50: 90 rows, 9 answered differently by the stages"
    )


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_a_threshold_beyond_all(rows: int) -> None:
    record = as_report(changed("cascade")).cascade
    assert record is not None
    one = replace(record.margins[0], rows=rows, differ=0)
    drawn = margin_bars(replace(record, margins=(one,), threshold=3e38))
    assert drawn.threshold is None
    assert drawn.bars[0].y == (drawn.bottom if rows == 0 else 10.0)


def test_page_and_table_tell_the_stages() -> None:
    report = as_report(changed("cascade"))
    page = render(report)
    assert 'href="#cascade"' in page
    assert "at most 25.00% of a batch" in page
    assert "encoder{hidden=12 &lt;b&gt;}" in page
    assert page.count('<rect class="gone"') >= 9
    rows = {name.strip(): ours for name, _, ours, _ in table_rows(report)}
    assert rows["deferred of the certify rows"] == "20.0%"
    assert rows["deferred of the test rows"] == "25.0%"
    assert rows["first and second model alone"] == "85.00 and 90.00"
    plain = render(as_report(changed("plain")))
    assert 'href="#cascade"' not in plain
