"""A whole run of question answering: data, certificate by question, report, what is served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.certificate.kept_answers import MOST_ROWS, read_answers
from prumux.optimizer.cli.opt import main
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run.plan import plan
from prumux.optimizer.run.recording import kept_questions
from prumux.optimizer.run.request import Request
from prumux.optimizer.tasks.prediction import TextSpan
from tests.helpers import questions
from tests.helpers.jobs import interrupted_and_resumed

SPACE = "prune{sparsity=0.1|0.3 of=macs},slice,reconstruct"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return questions.model_folder(tmp_path_factory.mktemp("job") / "model")


@pytest.fixture(scope="module")
def job(model: Path) -> list[str]:
    """A model and questions that it answers rightly."""
    data = questions.data_folder(model.parent / "data", model)
    return [str(model), "--data", str(data)]


@pytest.fixture(scope="module")
def done(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a search that was interrupted and resumed."""
    out = tmp_path_factory.mktemp("done") / "out"
    command = [*job, "--budget", "20%", "--passes", SPACE, "--out", str(out), "-q"]
    interrupted_and_resumed(command)
    return out


def report_of(folder: Path) -> Any:
    return json.loads((folder / "report.json").read_text())


def lines(job: list[str], split: str) -> list[Any]:
    file = Path(job[2]) / f"{split}.jsonl"
    return [json.loads(x) for x in file.read_text().splitlines()]


def test_certified_by_question(done: Path) -> None:
    report = report_of(done)
    assert report["task"]["kind"] == "question-answering"
    assert report["metric"] == "f1"
    certified = report["scores"]["certify"]
    assert certified["rows"] == questions.SIZES["validation"]
    assert certified["method"] == "betting"
    assert certified["score_dense"] == 1.0
    assert 0.8 <= certified["score"] < 1.0
    assert certified["loss_upper"] <= 0.2
    assert report["scores"]["test"]["rows"] == questions.SIZES["test"]


def test_the_model_card_shows_how_to_ask(done: Path) -> None:
    card = (done / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert 'model.predict([("a question", "its context")])\n```' in card


def test_predicted_answers_have_the_certified_score(job: list[str], done: Path) -> None:
    rows = lines(job, "validation")
    found = prumux.load(done).predict([(x["question"], x["context"]) for x in rows])
    right = []
    for x, row in zip(found, rows, strict=True):
        assert isinstance(x, TextSpan)
        assert x.answer == row["context"][x.start : x.end]
        assert 0 < x.score <= 1
        right.append(x.answer == row["answers"]["text"][0])
    report = report_of(done)
    # The same text, not the same normalised text, so at most as many as agree.
    assert 0.5 < np.mean(right) <= report["classes"]["certify"]["agreement"] + 1e-9


def test_a_context_of_any_length_is_searched(done: Path) -> None:
    loaded = prumux.load(done)
    words = " ".join("abcdefghijklmnopqrstuvwxyz" * 8)
    [found] = loaded.predict([("who", words)])
    assert isinstance(found, TextSpan)
    assert found.answer == words[found.start : found.end]
    again = loaded.predict([("who", words), ("who", words)], batch_size=3)
    assert [again[0], again[1]] == [found, found]


def test_bad_arguments_of_predict(done: Path) -> None:
    loaded = prumux.load(done)
    asked = {"question": "who", "context": "Ann"}
    triple = ("who", "Ann", "Bob")
    every: list[Any] = ["who", ["who"], asked, [asked], [triple], [("who", None)], None]
    for wrong in (*every, ("who", "Ann"), [("who", "Ann"), "Bob"]):
        with pytest.raises(UsageError, match=r"\ncall predict\(\[\('a question'"):
            loaded.predict(wrong)
    for copies in (0, 2, "2", True):
        with pytest.raises(UsageError, match=r"copies is .*: this model mixes 1 rows, use 1"):
            loaded.predict([("who", "Ann")], copies=copies)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="logits are of tokens"):
        loaded.predict_logits([("who", "Ann")])
    assert loaded.predict([]) == []
    [none] = loaded.predict([("who", "")])
    assert isinstance(none, TextSpan)
    assert (none.answer, none.start, none.end) == ("", 0, 0)


def test_transformers_and_onnx_runtime_load_the_result(job: list[str], done: Path) -> None:
    module = AutoModelForQuestionAnswering.from_pretrained(done).eval()
    tokenizer = AutoTokenizer.from_pretrained(done)
    row = lines(job, "test")[0]
    inputs = tokenizer(
        row["question"], row["context"], return_tensors="pt", truncation=True, max_length=40
    )
    names = ("start_logits", "end_logits")
    session = onnxruntime.InferenceSession(str(done / "model.onnx"))
    fed = {x.name: inputs[x.name].numpy() for x in session.get_inputs()}
    got = session.run([*names], fed)
    wanted = module(**{k: inputs[k] for k in fed})
    for name, x in zip(names, got, strict=True):
        assert np.abs(wanted[name].detach().numpy() - x).max() < 1e-4


def test_verified_window_by_window(
    done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_answers(done)
    assert kept.question is not None
    assert len(kept.ids) == len(kept.question) == len(kept.logits) <= MOST_ROWS
    assert len(kept.rows) == len(kept.references) == kept.question[-1] + 1
    assert len(kept.ids) > len(kept.rows)
    assert kept.facts.metric == "f1"
    assert bench(["--verify", str(done), "--rounds", "1", "--batch", "4"]) == 0
    assert "the certified ones" in capsys.readouterr().out
    other = shutil.copytree(done, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["question_answering"]["stride"] = 3
    (other / "config.json").write_text(json.dumps(config))
    assert bench(["--verify", str(other), "--rounds", "1", "--batch", "4"]) == 4
    assert "windows, not" in capsys.readouterr().err


@pytest.mark.parametrize("text", [False, True])
def test_timed_beside_the_given_model(
    text: bool, job: list[str], done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [job[0], str(done), "--rounds", "1", "--batch", "8", "--json"]
    more = ["--text"] if text else ["--data", job[2]]
    assert bench([*command, *more]) == 0
    assert str(done) in capsys.readouterr().out


def test_kept_questions_are_whole() -> None:
    question = np.repeat(np.arange(50), np.arange(50) % 4 + 1)
    chosen, windows = kept_questions(question, 0, 40)
    assert set(question[windows]) == set(chosen.tolist())
    assert len(windows) == sum(x % 4 + 1 for x in chosen.tolist()) <= 40
    assert kept_questions(np.zeros(9, np.int64), 0, 4)[1].tolist() == [*range(9)]


def test_trained_with_questions_without_answers_in_int8(model: Path, tmp_path: Path) -> None:
    data = questions.data_folder(tmp_path / "data", model, lacking=4)
    out = tmp_path / "out"
    passes = "prune{sparsity=0.2 by=second-order},slice,distill{epochs=1 labels=1}"
    command = [str(model), "--data", str(data), "--passes", passes, "--stride", "6"]
    command += ["--target", "onnx{precision=int8}", "--metric", "em"]
    assert main([*command, "--out", str(out), "-q"]) == 0
    config = json.loads((out / "config.json").read_text())
    block = {"may_lack_answers": True, "stride": 6}
    assert config["question_answering"] == block
    assert load_model(str(out)).task.to_config() == {"question_answering": block}
    report = report_of(out)
    assert report["engine"]["precision"] == "int8"
    # The model was asked without the choice to answer nothing: at most three quarters remain.
    assert 0.4 < report["scores"]["certify"]["score_dense"] <= 0.76


def test_without_labels_agreement_is_kept(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = questions.data_folder(tmp_path / "data", model, labelled=False)
    command = [str(model), "--data", str(data), "--budget", "30%", "--passes", SPACE]
    assert main([*command, "--out", str(tmp_path / "out"), "--dry-run", "-q"]) == 0
    assert json.loads(capsys.readouterr().out)["metric"] == "agreement"
    evaluator = plan(
        Request(str(model), budget=Budget.parse("30%"), passes=SPACE, data=str(data)),
        Progress(0),
    ).evaluator
    found = evaluator.compare(Pipeline.parse("prune{sparsity=0.1},slice"), "certify", 0.3)
    assert (found.method, found.rows) == ("clopper-pearson", questions.SIZES["validation"])
    assert 0 < found.loss < found.loss_upper


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            ["--passes", "mux{n=2}"],
            "the windows of a question would depend on those of others",
        ),
        (["--passes", "cascade"], "cascade needs one answer a row"),
        (["--budget", "9%", "--metric", "accuracy"], "these do: em, f1, agreement"),
        (
            ["--budget", "9%", "--stride", "20"],
            "--stride 20 is over a third of a window of 40",
        ),
        (["--budget", "9%", "--stride", "0"], "--stride"),
        (["--budget", "9%", "--columns", "label=answers"], "does not fit question-answering"),
    ],
)
def test_what_cannot_work_is_refused_by_name(
    options: list[str], said: str, job: list[str], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert main([*job, *options, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
