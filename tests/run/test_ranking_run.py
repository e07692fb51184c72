"""A whole run of a reranker: data, certificate by query, report, and what is served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.optimizer.certificate.kept_answers import MOST_ROWS, read_answers
from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.source import load_model
from prumux.optimizer.run.recording import kept_rows
from tests.helpers import jobs
from tests.helpers.datafiles import write

ACTIVATION = {"activation_fn": "torch.nn.modules.activation.Sigmoid", "version": "5.0.0"}
CONFIG = jobs.CONFIG | {"id2label": {"0": "LABEL_0"}, "sentence_transformers": ACTIVATION}
PASSAGES = 8
SPACE = "pool-early,prune{sparsity=0.1|0.3|0.5 of=macs},slice,reconstruct"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A reranker, and queries whose relevant passages it mostly scores highest."""
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model", CONFIG)
    given, random = load_model(str(model)), np.random.default_rng(0)
    for seed, (name, queries) in enumerate(
        {"train": 60, "validation": 150, "test": 30}.items()
    ):
        first = [x for x in jobs.texts(queries, seed) for _ in range(PASSAGES)]
        second = jobs.texts(queries * PASSAGES, seed + 10)
        coded = jobs.coded_by(given, Rows(tuple(first), tuple(second)))
        scores = np.asarray(predict(torch_run(given), coded, given.task))
        scores = (scores + 0.3 * scores.std() * random.normal(size=len(scores))).reshape(
            -1, PASSAGES
        )
        grades = (scores.argsort(1).argsort(1) - PASSAGES + 3).clip(0)
        grades[0] = 0  # a query that tells nothing
        write(
            here / "data" / f"{name}.jsonl",
            query=first, passage=second, label=grades.ravel().tolist(),
        )  # fmt: skip
    return [str(model), "--data", str(here / "data")]


@pytest.fixture(scope="module")
def done(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a search that was interrupted and resumed."""
    out = tmp_path_factory.mktemp("done") / "out"
    command = [*job, "--budget", "15%", "--passes", SPACE, "--out", str(out), "-q"]
    jobs.interrupted_and_resumed(command)
    return out


def test_the_report_counts_queries(done: Path) -> None:
    report = json.loads((done / "report.json").read_text())
    assert report["metric"] == "ndcg@10"
    assert (report["task"]["kind"], report["task"]["unit"]) == ("text-ranking", "queries")
    certify = report["scores"]["certify"]
    assert (certify["rows"], certify["method"]) == (149, "betting")
    assert certify["loss"] < certify["loss_upper"] <= 0.15
    assert any(
        "certify: validation (1192 rows of 149 queries)" in x for x in report["data"]["roles"]
    )
    assert any("task: ranking, scored by query" in x for x in report["data"]["roles"])
    left_out = "validation: left out: 1 query without a relevant passage (8 rows)"
    assert left_out in report["warnings"]
    page = (done / "report.html").read_text()
    assert "149 queries" in page
    assert "pairs of passages that both models order alike" in page


def test_the_result_is_a_model_of_one_score(done: Path) -> None:
    config = json.loads((done / "config.json").read_text())
    assert config["sentence_transformers"] == ACTIVATION
    predictor = prumux.load(str(done))
    pairs = [("abc def", "ghi"), ("abc def", "jkl mno")]
    logits = np.asarray(predictor.predict_logits(pairs))[:, 0]
    answers: list[Any] = predictor.predict(pairs)
    assert [x.score for x in answers] == pytest.approx((1 / (1 + np.exp(-logits))).tolist())
    assert answers[0].label is None


def test_the_kept_answers_are_verified_by_query(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_answers(done)
    assert kept.rows.groups is not None
    assert len(kept.rows) == MOST_ROWS
    assert set(np.unique(kept.rows.groups, return_counts=True)[1]) == {PASSAGES}
    assert bench(["--verify", str(done), "--rounds", "2", "-q"]) == 0
    assert "ndcg@10" in capsys.readouterr().out


def test_agreement_needs_no_grades(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "validation"):
        lines = (Path(job[2]) / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(x) for x in lines]
        bare = [json.dumps({k: x[k] for k in ("query", "passage")}) for x in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(bare))
    space = "pool-early,prune{sparsity=0.1},slice,reconstruct"
    command = [job[0], "--data", str(tmp_path), "--budget", "15%", "--passes", space]
    assert main([*command, "--out", str(tmp_path / "o"), "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["metric"], report["scores"]["certify"]["rows"]) == ("agreement", 150)
    assert bench(["--verify", str(tmp_path / "o"), "--rounds", "2", "-q"]) == 0


def test_queries_are_trained_on_and_mixed(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = "prune{sparsity=0.2},slice,mux{n=2 at=1},distill{epochs=0.5 labels=1}"
    command = [*job, "--passes", space, "--metric", "mrr@10", "--out", str(tmp_path / "o")]
    assert main([*command, "--json", "-q"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["scores"]["certify"]["rows"] == 149
    assert report["mux"]["depends_on_partners"] > 0


def test_a_budget_that_a_random_order_keeps(
    job: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*job, "--budget", "60%", "--dry-run"]) == 2
    said = capsys.readouterr().err
    assert "always answering one score for all passages scores" in said
    assert "so it keeps --budget 60%" in said


def test_grades_that_do_not_fit_the_scores(
    job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "validation"):
        lines = (Path(job[2]) / f"{name}.jsonl").read_text().splitlines()
        rows = [json.loads(x) for x in lines]
        turned = [json.dumps(x | {"label": 2 - x["label"]}) for x in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(turned))
    command = [job[0], "--data", str(tmp_path), "--budget", "5%", "--dry-run"]
    assert main(command) == 2
    assert "the labels do not fit the model's answers" in capsys.readouterr().err


@pytest.mark.parametrize(("passages", "kept"), [(7, 252), (300, MOST_ROWS)])
def test_whole_queries_are_kept(passages: int, kept: int) -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(60), passages))
    rows = Encoded(Ragged.of([[1]] * len(groups)), None, None, 0, groups=groups)
    at = kept_rows(rows, 0)
    assert at.tolist() == sorted(set(at.tolist()))
    assert len(at) == kept
    _, counts = np.unique(groups[at], return_counts=True)
    assert len(counts) == -(-kept // passages)
    plain = Encoded(rows.ids, None, None, 0)
    assert len(kept_rows(plain, 0)) == MOST_ROWS
