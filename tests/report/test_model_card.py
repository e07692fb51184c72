"""README.md of a result."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from prumux.optimizer.report.formats import points
from prumux.optimizer.report.model_card import model_card, plain_text
from tests.helpers.reports import KINDS, as_report, changed


@pytest.mark.parametrize("kind", KINDS)
def test_the_hub_reads_the_card_and_its_figures_are_those_of_the_report(kind: str) -> None:
    report = as_report(changed(kind))
    text = model_card(report)
    data = vars(ModelCard(text).data)
    assert data["library_name"] == "prumux"
    assert {"prumux", "onnx"} <= set(data["tags"])
    assert report.task is None or data["pipeline_tag"] == report.task.kind
    assert f"| {report.throughput_ratio:.2f}x [" in text
    for _, score in report.scores.items():
        assert f"{points(score.loss)} | {points(score.loss_upper)} |" in text
    assert ("data-multiplexing" in data["tags"]) == (report.mux is not None)


def test_two_engines_are_not_one_graph() -> None:
    report = as_report(changed("plain"))
    assert "`model.onnx` runs in\nplain ONNX Runtime" in model_card(report)
    two = replace(report, engine={**report.engine, "stages": "two engines"})
    text = model_card(two)
    assert "The engine in `first/`\nanswers every row" in text
    assert "model.onnx" not in text


def test_names_are_no_markup() -> None:
    report = as_report(changed("plain"))
    name = "a|b\n## <script>alert(1)</script> [x](y)"
    text = model_card(replace(report, source={**report.source, "name": name}))
    assert "<script>" not in text
    assert "\n## \\<" not in text
    assert plain_text("a_b\n*c*") == "a\\_b \\*c\\*"
