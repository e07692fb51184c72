"""Whole runs of the command line on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import prumux
from prumux.optimizer.cli.opt import main
from prumux.optimizer.model.source import load_model
from prumux.optimizer.run.request import Request
from tests.helpers import jobs
from tests.helpers.checkpoints import config

SPACE = "pool-early,prune{sparsity=0.1|0.2|0.3|0.5|0.7|0.9 of=macs},slice,reconstruct"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model")
    return [str(model), "--data", str(jobs.data_folder(here / "data", model))]


@pytest.fixture(scope="module")
def done(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of an undisturbed search."""
    out = tmp_path_factory.mktemp("done") / "out"
    assert main([*job, "--budget", "20%", "--passes", SPACE, "--out", str(out), "-q"]) == 0
    return out


def test_artifact_folder(done: Path) -> None:
    names = {path.name for path in done.iterdir()}
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "model.onnx",
        "pipeline.txt",
        "report.json",
        "report.html",
        "trials.jsonl",
        "certified_answers.jsonl",
        "tensorrt.sh",
        "tensorrt",
        "triton",
    }
    assert not (done / ".resume").exists()
    report = json.loads((done / "report.json").read_text())
    assert report["met"]
    assert report["pipeline"] == (done / "pipeline.txt").read_text().strip()
    assert report["scores"]["certify"]["loss_upper"] <= 0.2
    if report["dropped"] is None:
        assert report["cost"]["optimised"]["macs"] < report["cost"]["dense"]["macs"]
    trials = [json.loads(x) for x in (done / "trials.jsonl").read_text().splitlines()]
    assert len({t["pipeline"] for t in trials}) == len(trials)
    assert {t["pipeline"] for t in trials} == {t["pipeline"] for t in report["trials"]}


def test_all_ways_to_load_agree(done: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    found = jobs.texts(5, 7)
    predictor = prumux.load(str(done))
    logits = predictor.predict_logits(found)
    tokenizer = load_model(str(done)).tokenizer
    assert tokenizer is not None
    coded = tokenizer(found, padding=True, return_tensors="np", return_token_type_ids=True)
    inputs = {k: np.asarray(v, dtype=np.int64) for k, v in coded.items()}
    session = onnxruntime.InferenceSession(str(done / "model.onnx"))
    plain = session.run(None, {x.name: inputs[x.name] for x in session.get_inputs()})[0]
    module = AutoModelForSequenceClassification.from_pretrained(str(done))
    with torch.no_grad():
        theirs = module(**{k: torch.as_tensor(v) for k, v in inputs.items()}).logits
    np.testing.assert_allclose(plain, logits, atol=1e-4)
    np.testing.assert_allclose(theirs, logits, atol=1e-4)


def test_an_artifact_can_be_optimised_again(
    done: Path, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "again"
    again = [str(done), *job[1:], "--passes", "prune{sparsity=0.2},slice"]
    assert main([*again, "--out", str(out), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["met"]
    assert report["budget"] is None


def test_json_is_one_document(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*job, "--passes", "pool-early", "--out", str(tmp_path / "o"), "--json"]
    assert main(args) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["schema_version"] == 1
    assert report["scores"]["certify"]["loss"] == 0
    assert report["throughput_ratio"] > 0
    assert "no budget" in err


def test_table_names_what_matters(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*job, "--passes", "pool-early", "--out", str(tmp_path / "o"), "-q"]) == 0
    out = capsys.readouterr().out
    for words in ("accuracy, certify (600 rows)", "accuracy, test (200 rows)", "rows/s"):
        assert words in out
    for words in ("latency p99", "parameters", "multiply-adds", "engine file"):
        assert words in out


def test_budget_that_nothing_meets(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o"
    space = "pool-early,prune{sparsity=0.8|0.9 of=macs},slice"
    assert main([*job, "--budget", "0.5%", "--passes", space, "--out", str(out)]) == 3
    text = capsys.readouterr().out
    assert "not met" in text
    assert "the unpruned engine" in text
    report = json.loads((out / "report.json").read_text())
    assert not report["met"]
    assert report["pipeline"] in ("pool-early", "")
    assert report["scores"]["certify"]["loss"] == 0
    assert (out / "model.onnx").exists()


def test_unlabelled_text_keeps_agreement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model, labelled=False)
    args = [str(model), "--data", str(data), "--budget", "30%", "--passes", SPACE]
    code = main([*args, "--out", str(tmp_path / "o"), "--json", "-q"])
    report = json.loads(capsys.readouterr().out)
    assert report["metric"] == "agreement"
    assert code == (0 if report["met"] else 3)


TOPICS = {"0": "anger", "1": "joy", "2": "fear"}
TASKS: dict[str, tuple[dict[str, Any], str]] = {
    "pairs": ({}, "accuracy"),
    "many classes": ({"id2label": {str(i): f"class {i}" for i in range(7)}}, "accuracy"),
    "regression": ({"id2label": {"0": "score"}, "problem_type": "regression"}, "pearson"),
    "topics": ({"id2label": TOPICS, "problem_type": "multi_label_classification"}, "micro-f1"),
    "tags": (
        {
            "architectures": ["BertForTokenClassification"],
            "id2label": {"0": "O", "1": "B-X", "2": "I-X"},
        },
        "f1",
    ),
    "distilbert": ({"model_type": "distilbert"}, "accuracy"),
}


@pytest.mark.parametrize("name", TASKS)
def test_every_kind_of_task(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, metric = TASKS[name]
    of = jobs.CONFIG | changes
    if name == "distilbert":
        of |= config("distilbert", vocab_size=101, max_position_embeddings=40)
    model = jobs.model_folder(tmp_path / "model", of)
    data = jobs.data_folder(tmp_path / "data", model, pairs=name == "pairs")
    out = tmp_path / "out"
    space = "pool-early,prune{sparsity=0.1|0.5},slice,reconstruct"
    args = [str(model), "--data", str(data), "--budget", "25%", "--passes", space]
    code = main([*args, "--out", str(out), "--json", "-q"])
    report = json.loads(capsys.readouterr().out)
    assert code == (0 if report["met"] else 3)
    assert report["metric"] == metric
    assert report["scores"]["certify"]["score_dense"] == pytest.approx(1.0, abs=1e-6)
    again = prumux.load(str(out))
    first: Any = ["good", "film"] if name == "tags" else "good film"
    assert len(again.predict([("good", "film") if name == "pairs" else first])) == 1


def test_dry_run_writes_nothing(
    job: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*job, "--budget", "2%", "--dry-run"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert len(plan["candidates"]) > 5
    assert plan["limit"] == 0.02
    assert list(tmp_path.iterdir()) == []


def test_the_result_of_the_current_folder_is_named_after_it(
    job: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(job[0])
    assert main([".", *job[1:], "--budget", "2%", "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "model-prumux"


@pytest.mark.parametrize(
    ("model", "folder"),
    [
        (".", "here-prumux"),
        ("./", "here-prumux"),
        ("..", "above-prumux"),
        ("sub/..", "here-prumux"),
        ("sub/", "sub-prumux"),
        ("../model.pt", "model-prumux"),
        ("organisation/name", "name-prumux"),
        ("/", "model-prumux"),
    ],
)
def test_the_name_of_the_result_folder(
    model: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "above" / "here"
    (here / "sub").mkdir(parents=True)
    (tmp_path / "above" / "model.pt").touch()
    monkeypatch.chdir(here)
    assert Request(model).folder == Path(folder)


def test_list_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list-passes"]) == 0
    out = capsys.readouterr().out
    for name in ("prune:", "slice:", "reconstruct:", "onnx:", "sparsity: float"):
        assert name in out


def test_force_replaces_and_resume_of_another_run_is_refused(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*job, "--passes", "pool-early", "--out", str(tmp_path / "o"), "-q"]
    assert main(args) == 0
    assert main(args) == 2
    assert "--force to replace it" in capsys.readouterr().err
    assert main([*args, "--force"]) == 0


@pytest.mark.slow
def test_standard_effort_trains_and_is_resumed_with_what_it_had(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A tiny model's time cannot be measured to 10 %, so the schedule counts multiply-adds.
    monkeypatch.setattr("prumux.optimizer.timing.cost_table.LIMIT", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out = tmp_path / "out"
    command = [*job, "--budget", "30%", "--effort", "standard", "--time-limit", "10s"]
    command += ["--out", str(out), "-v"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("prumux.optimizer.run.run.package", interrupted)
        assert main(command) == 130
    said = capsys.readouterr().err
    assert "counting multiply-adds in place of milliseconds" in said
    assert "training, " in said
    assert "timing shapes" in said, "mixing was thought of"
    assert main([*command, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "training, " not in said
    assert "building " not in said
    text = (out / "pipeline.txt").read_text().strip()
    lines = (out / "trials.jsonl").read_text().splitlines()
    tried = {json.loads(line)["pipeline"] for line in lines}
    assert len(tried) == len(lines)
    assert text in tried, "which of those that hold is the fastest, tiny models do not say"
    assert any("distill{minutes=" in x and "prune{" in x for x in tried)


@pytest.mark.parametrize(
    ("space", "trained"),
    [
        ("prune{sparsity=0.3},slice,distill{epochs=0.5},prune{sparsity=0.4|0.5|0.6},slice", 1),
        # the masks once, then distilled twice
        ("learn-masks{sparsity=0.3 of=macs epochs=0.5},slice,distill{epochs=0.25|0.5}", 3),
    ],
)
def test_what_pipelines_share_is_done_once(  # noqa: PLR0917
    job: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    space: str,
    trained: int,
) -> None:
    # A budget that all candidates keep; a constant answer keeps it, too.
    monkeypatch.setattr("prumux.optimizer.run.plan.check_scores", lambda *_: ())
    command = [*job, "--passes", space, "--budget", "95%", "--out", str(tmp_path / "out")]
    assert main([*command, "-v"]) == 0
    assert capsys.readouterr().err.count("training, ") == trained
