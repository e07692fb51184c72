"""Whole runs on data that certify nothing of use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prumux
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.cli.opt import main
from tests.helpers import jobs
from tests.helpers.datafiles import write

PASSES = "pool-early,prune{sparsity=0.1|0.3 of=macs},slice"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = {"id2label": {"0": "negative", "1": "positive"}}
    return jobs.model_folder(tmp_path_factory.mktemp("m") / "model", {**jobs.CONFIG, **names})


@pytest.fixture(scope="module")
def data(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return jobs.data_folder(tmp_path_factory.mktemp("d") / "data", model)


def changed(data: Path, out: Path, change: Any) -> Path:
    """The same data with other rows or labels."""
    for file in data.glob("*.jsonl"):
        rows = [json.loads(x) for x in file.read_text().splitlines()]
        kept = change(rows)
        columns = {k: [x[k] for x in kept] for k in ("text", "label")}
        write(out / file.name, **columns)
    return out


def rare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Few positives, and a given model that takes every tenth negative for one."""
    negative = [x for x in rows if x["label"] == 0]
    positive = [x for x in rows if x["label"] == 1]
    wrong = [{**x, "label": 0} for x in positive[4 : 4 + len(negative) // 9]]
    return [*negative, *positive[:4], *wrong]


def run(model: Path, data: Path, out: Path, *more: str) -> int:
    return main([str(model), "--data", str(data), "--out", str(out), *more])


def test_a_budget_that_a_constant_answer_keeps(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skewed = changed(data, tmp_path / "data", rare)
    assert run(model, skewed, tmp_path / "o", "--budget", "2%", "--passes", PASSES) == 2
    text = capsys.readouterr().err
    assert "always answering 'negative' scores 9" in text
    assert "write: --metric balanced-accuracy" in text
    assert not (tmp_path / "o").exists()
    # The metric that is named is taken, and the report shows what it is about.
    args = ("--budget", "40%", "--passes", PASSES, "--metric", "balanced-accuracy")
    assert run(model, skewed, tmp_path / "o", *args) in (0, 3)
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["scores"]["certify"]["method"] == "stratified tango"
    (few,) = [x for x in report["warnings"] if "few certify rows" in x]
    out, err = capsys.readouterr()
    assert f"warning: {few}" in err
    assert f"warning    {few}" in out
    assert "recall of 'positive'" in out
    assert few.replace("'", "&#39;") in (tmp_path / "o" / "report.html").read_text()


def test_a_pipeline_without_a_budget_shows_recalls(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skewed = changed(data, tmp_path / "data", rare)
    hard = "pool-early,prune{sparsity=0.95 of=macs},slice"
    assert run(model, skewed, tmp_path / "o", "--passes", hard) == 0
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    for role in ("certify", "test"):
        classes = {x["label"]: x for x in report["classes"][role]["classes"]}
        assert sum(x["rows"] for x in classes.values()) == report["scores"][role]["rows"]
        assert classes["positive"]["recall"]["dense"] == 1.0
    out = capsys.readouterr().out
    for words in ("agreement with dense", "recall of 'negative'", "'positive' (4)"):
        assert words in out


def test_labels_in_another_order(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def swap(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**x, "label": 1 - x["label"]} for x in rows]

    swapped = changed(data, tmp_path / "data", swap)
    args = ("--budget", "30%", "--passes", PASSES)
    assert run(model, swapped, tmp_path / "o", *args) == 2
    text = capsys.readouterr().err
    assert "the given model 0.00" in text
    option = ("--labels", "negative=positive", "positive=negative")
    assert f"write: {' '.join(option)}\n" in text
    for mended in (option, ("--labels", "0=positive", "1=negative")):
        assert run(model, swapped, tmp_path / "o", *args, *mended, "--dry-run") == 0
        told = json.loads(capsys.readouterr().out)
        assert any("labels as --labels says" in x for x in told["data"])
    with pytest.raises(UsageError, match=r"the given model 0\.00"):
        prumux.optimize(model, data=swapped, passes=PASSES, budget=0.3, out=tmp_path / "o")
    found = prumux.optimize(
        model,
        data=swapped,
        passes="pool-early",
        labels={0: "positive", 1: 0},
        out=tmp_path / "p",
    )
    assert found.report["facts"]["labels"] == {"0": "positive", "1": "0"}
    assert found.report["scores"]["certify"]["score_dense"] == 1.0


def test_wrong_labels_options(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for labels, said in (
        ("0", "--labels takes KEY=NAME, not '0'\nwrite, say, --labels 0=positive"),
        ("0=good", "the model has no class 'good'"),
        ("good=negative", "no row has the label 'good'"),
    ):
        assert run(model, data, tmp_path / "o", "--budget", "2%", "--labels", labels) == 2
        assert said in capsys.readouterr().err


def test_a_gain_beyond_chance_is_warned_of(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows labelled with another model's answers: that model, cut from the given one, wins."""
    small = "pool-early,prune{sparsity=0.3 of=macs},slice"
    made = prumux.optimize(model, data=data, passes=small, out=tmp_path / "small")
    predictor = prumux.load(str(made.folder))

    def by_small(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        ids = np.stack(list(predictor.predict_logits([x["text"] for x in rows]))).argmax(-1)
        return [{**x, "label": int(y)} for x, y in zip(rows, ids, strict=True)]

    other = changed(data, tmp_path / "data", by_small)
    assert run(model, other, tmp_path / "o", "--passes", small) == 0
    report = json.loads((tmp_path / "o" / "report.json").read_text())
    assert report["scores"]["certify"]["loss_upper"] < 0
    (text,) = [x for x in report["warnings"] if "a smaller model is seldom better" in x]
    assert f"warning: {text}" in capsys.readouterr().err
    np.testing.assert_allclose(report["scores"]["certify"]["score"], 1.0, atol=0.01)
