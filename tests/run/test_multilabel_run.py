"""A whole run of a multi-label model: data by columns, report, resume, and what is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.model.source import load_model
from tests.helpers import jobs
from tests.helpers.datafiles import write

NAMES = ("anger", "joy", "fear", "trust")
THRESHOLDS = [0.5, 0.45, 0.5, 0.55]
CONFIG = jobs.CONFIG | {
    "id2label": {str(i): x for i, x in enumerate(NAMES)},
    "problem_type": "multi_label_classification",
    "thresholds": THRESHOLDS,
}
SPACE = "pool-early,prune{sparsity=0.1|0.3|0.5 of=macs},slice,reconstruct"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A model, and texts with a column of 0 and 1 for each label; few of them are wrong."""
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model", CONFIG)
    given, random = load_model(str(model)), np.random.default_rng(0)
    for seed, (name, count) in enumerate(jobs.SIZES.items()):
        rows = jobs.rows_of(given, count, seed)
        held = np.asarray(predict(torch_run(given), jobs.coded_by(given, rows), given.task))
        held = np.where(random.random(held.shape) < 0.02, 1 - held, held)
        each = {x: held[:, i].tolist() for i, x in enumerate(NAMES)}
        write(here / "data" / f"{name}.csv", text=list(rows.text_a), **each)
    return [str(model), "--data", str(here / "data")]


@pytest.fixture(scope="module")
def done(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a search that was interrupted and resumed."""
    out = tmp_path_factory.mktemp("done") / "out"
    command = [*job, "--budget", "10%", "--passes", SPACE, "--out", str(out), "-q"]
    jobs.interrupted_and_resumed(command)
    return out


def test_the_report(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert report["metric"] == "micro-f1"
    assert report["task"] == {
        "kind": "text-classification",
        "problem": "multi-label",
        "labels": list(NAMES),
    }
    assert report["scores"]["certify"]["method"] == "bootstrap"
    assert "labels: 0 or 1 in 4 columns: anger, joy, fear, ..." in report["data"]["roles"]
    classes = report["classes"]["certify"]["classes"]
    assert [x["label"] for x in classes] == list(NAMES)
    assert sum(x["rows"] for x in classes) > 600, "rows have several labels"
    assert all(x["recall"]["dense"] > 0.9 for x in classes if x["answered"]["dense"] > 100)
    assert "anger" in (done / "report.html").read_text()


def test_thresholds_travel_to_the_answers(done: Path) -> None:
    assert json.loads((done / "config.json").read_text())["thresholds"] == THRESHOLDS
    predictor = prumux.load(str(done))
    texts = jobs.texts(40, 5)
    shares = 1 / (1 + np.exp(-np.asarray(predictor.predict_logits(texts))))
    for found, row in zip(predictor.predict(texts), shares, strict=True):
        held = {x for x, p, t in zip(NAMES, row, THRESHOLDS, strict=True) if p > t}
        assert {*found.labels} == held  # type: ignore[union-attr]
        assert [*found.scores.values()] == pytest.approx(row.tolist(), abs=1e-6)  # type: ignore[union-attr]


def test_hugging_face_loads_it(done: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    module = AutoModelForSequenceClassification.from_pretrained(str(done))
    assert module.config.problem_type == "multi_label_classification"
    assert module.config.thresholds == THRESHOLDS


def test_engine_and_server(done: Path) -> None:
    assert bench(["--verify", str(done), "--rounds", "2", "-q"]) == 0
    (labels,) = (done / "triton").glob("*/labels.txt")
    assert labels.read_text().split() == list(NAMES)
    assert f"in this order: {', '.join(NAMES)}" in (done / "triton" / "README.md").read_text()


@pytest.mark.parametrize(
    ("metric", "budget", "method"),
    [
        ("subset-accuracy", "15%", "tango"),
        ("agreement", "15%", "clopper-pearson"),
        ("macro-f1", "12%", "bootstrap"),
    ],
)
def test_every_metric_is_certified(  # noqa: PLR0917
    job: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    metric: str,
    budget: str,
    method: str,
) -> None:
    space = "pool-early,prune{sparsity=0.1},slice,reconstruct"
    command = [*job, "--budget", budget, "--metric", metric, "--passes", space]
    assert main([*command, "--out", str(tmp_path / "o"), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["metric"], report["scores"]["certify"]["method"]) == (metric, method)


def test_labels_and_mixed_rows_are_trained_on(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "prune{sparsity=0.2},slice,mux{n=2 at=1},distill{epochs=0.5 labels=1}"
    assert main([*job, "--passes", space, "--out", str(tmp_path / "o"), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert 0 <= report["mux"]["depends_on_partners"] <= 1
    assert report["scores"]["certify"]["score_dense"] > 0.9


def test_a_budget_that_a_useless_model_keeps(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*job, "--budget", "60%", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "always answering '" in said
    assert "so it keeps --budget 60%" in said


def test_labels_of_another_task(job: list[str], tmp_path: Path) -> None:
    """Labels that have nothing to do with the answers do not fit the model."""
    random: Any = np.random.default_rng(1)
    for name, count in (("train", 80), ("validation", 400)):
        each = {x: random.integers(0, 2, count).tolist() for x in NAMES}
        write(tmp_path / f"{name}.csv", text=jobs.texts(count, count), **each)
    with pytest.raises(UsageError, match="the labels do not fit the model's answers"):
        prumux.optimize(job[0], data=str(tmp_path), budget="2%", out=tmp_path / "o")
