"""Artifacts and an interrupted run that 0.1.0 wrote, kept for ever in `tests/data/0.1.0`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import prumux
from prumux.optimizer.base import environment
from prumux.optimizer.cli.opt import main

DATA = Path(__file__).parent / "data" / "0.1.0"
ARTIFACTS = ("pruned-bert", "mixed-roberta", "tokens-distilbert")
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
ATOL = 1e-5


def expected(name: str) -> dict[str, Any]:
    with np.load(DATA / name / "expected.npz") as file:
        return dict(file)


def matters(name: str, logits: Any) -> Any:
    """Logits that count: of token tasks those of real positions."""
    real = expected(name)["attention_mask"] == 1
    return logits[real] if np.ndim(logits) == 3 else logits


@pytest.mark.parametrize("name", ARTIFACTS)
def test_load_answers_the_same(name: str) -> None:
    known = expected(name)
    texts = json.loads(str(known["texts"]))
    token = name.startswith("tokens")
    given = [x.split() for x in texts] if token else texts
    predictor = prumux.load(DATA / name)
    found = predictor.predict_logits(given)
    np.testing.assert_allclose(np.vstack(list(found)), known["predicted"], atol=ATOL)
    answers: Any = predictor.predict(given)
    labels = (
        [[x.label for x in row] for row in answers] if token else [x.label for x in answers]
    )
    assert labels == json.loads(str(known["labels"]))
    assert len({str(x) for x in labels}) > 1, "a constant answer would show nothing"


@pytest.mark.parametrize("name", ARTIFACTS)
def test_auto_classes_answer_the_same(name: str) -> None:
    from transformers import (
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    auto: Any = AutoModelForSequenceClassification
    if name.startswith("tokens"):
        auto = AutoModelForTokenClassification
    known = expected(name)
    module = auto.from_pretrained(str(DATA / name)).eval()
    given = {k: torch.as_tensor(known[k]) for k in INPUTS if k in known}
    with torch.no_grad():
        found = module(**given).logits.numpy()
    np.testing.assert_allclose(
        matters(name, found), matters(name, known["logits"]), rtol=0, atol=ATOL
    )


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_graph_answers_the_same(name: str) -> None:
    known = expected(name)
    session = onnxruntime.InferenceSession(str(DATA / name / "model.onnx"))
    given = {x.name: known[x.name] for x in session.get_inputs()}
    found = session.run(None, given)[0]
    np.testing.assert_allclose(
        matters(name, found), matters(name, known["logits"]), rtol=0, atol=ATOL
    )


@pytest.mark.parametrize("name", ARTIFACTS)
def test_the_files_are_those_of_0_1_0(name: str) -> None:
    config = json.loads((DATA / name / "config.json").read_text(encoding="utf-8"))
    report = json.loads((DATA / name / "report.json").read_text(encoding="utf-8"))
    assert config["model_type"] == "prumux"
    assert report["versions"]["prumux"] == "0.1.0"
    text = (DATA / name / "pipeline.txt").read_text(encoding="utf-8").strip()
    assert report["pipeline"] == text
    assert str(prumux.Pipeline.parse(text)) == text


def test_a_run_of_another_version_is_not_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    shutil.copytree(DATA / "interrupted", out)
    before = sorted(path.name for path in (out / ".resume").iterdir())
    given = DATA / "given"
    command = [str(given / "model"), "--data", str(given / "data"), "--out", str(out)]
    command += ["--passes", "prune{sparsity=0.3|0.5},slice", "--budget", "30%"]
    command += ["--target", "onnx{fusion=none}", "-q", "--resume"]
    known = environment.versions()
    later = {**known, "prumux": "0.1.1" if known["prumux"] == "0.1.0" else known["prumux"]}
    monkeypatch.setattr("prumux.optimizer.search.evaluator.versions", lambda: later)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert f"begun by prumux 0.1.0, this is prumux {later['prumux']}" in said
    assert "start again with --force" in said
    assert "Traceback" not in said
    assert sorted(path.name for path in (out / ".resume").iterdir()) == before
