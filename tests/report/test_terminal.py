"""The table and the lines that a run ends with."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from prumux.optimizer.report.class_scores import class_scores
from prumux.optimizer.report.terminal import class_rows, print_table, summary, table_rows
from prumux.optimizer.tasks.classification import Classification
from tests.helpers.reports import KINDS, as_report, changed


def lines(kind: str) -> str:
    return "\n".join(summary(as_report(changed(kind)), Path("out")))


@pytest.mark.parametrize("kind", KINDS)
def test_every_row_stands_on_one_line_of_the_table(kind: str) -> None:
    report, stream = as_report(changed(kind)), io.StringIO()
    print_table(report, stream)
    printed = [" ".join(x.split()) for x in stream.getvalue().splitlines()]
    for row in table_rows(report):
        assert " ".join(" ".join(row).split()) in printed


def test_figures_compare_the_optimised_model_with_the_dense_one() -> None:
    report = as_report(changed("plain"))
    rows = {
        name: (dense, ours, compared) for name, dense, ours, compared in table_rows(report)
    }
    dense, ours = report.speed.dense, report.speed.optimised
    assert rows["rows/s (batch 32, 25 tokens)"][2].startswith(f"{ours.throughput_ratio:.2f}x")
    latency = rows["latency p50, one row (ms)"]
    assert latency[2] == f"{ours.latency_ms_p50 / dense.latency_ms_p50:.0%}"
    certify = report.scores.certify
    assert rows["accuracy, certify (872 rows)"][2] == f"{-100 * certify.loss:+.2f} points"
    same = {row[0]: row for row in table_rows(as_report(changed("refused")))}
    assert same["accuracy, test (1821 rows)"][3] == "+0.00 points"


def test_classes_stand_below_the_score_of_their_rows() -> None:
    rows = table_rows(as_report(changed("classes")))
    assert rows[1] == ("  agreement with dense", "", "95.00", "")
    assert rows[2] == (
        "  recall of 'negative' (428)",
        "91.12",
        "93.69",
        "+2.57 points",
    )
    assert not any("unseen" in name for name, *_ in rows)
    assert "warning    the optimised model never answers" in lines("classes")


def test_of_many_classes_the_table_shows_those_that_lost_most() -> None:
    y = np.arange(300) % 30
    task = Classification(tuple(f"c{i}" for i in range(30)))
    rows = class_rows(class_scores(y, np.where(y == 17, 0, y), y, task))
    assert len(rows) == 7
    assert rows[1][0] == "  5 of 30 classes, largest loss"
    lost = ("  recall of 'c17' (10)", "100.00", "0.00", "-100.00 points")
    assert rows[2] == lost


def test_each_kind_of_result_says_what_it_is() -> None:
    assert "budget     2% of accuracy: loss at most 0.93 points with 95%" in lines("plain")
    assert "not met    the safest candidate lost 0.69%" in lines("refused")
    assert "the folder holds the unpruned engine, onnx" in lines("refused")
    assert "budget" not in lines("no budget")
    assert "kept, because the given model is shipped" in lines("dropped")
    assert "its engine ran at 0.80x the dense engine's throughput" in lines("dropped")
    beside = lines("beside")
    assert "also timed dense on onnx{precision=int8 fusion=none}: 2.10x" in beside
    assert "also timed shipped on onnx{precision=fp32}: 3.50x" in beside
    assert "written    out/  (26 min 44 s)" in beside
