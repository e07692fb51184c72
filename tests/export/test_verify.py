"""`prumux-bench --verify`: the certified answers, asked for again where an engine serves."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.export.benchmark.cli import main
from prumux.export.onnx import Onnx
from prumux.export.trt.library import gpu_here
from prumux.optimizer.certificate.kept_answers import (
    FILE,
    CertifiedFacts,
    KeptAnswers,
    digests,
    read_answers,
    write_answers,
)
from prumux.optimizer.data.predict import predict, row_logits, scored_positions
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import encode
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from tests.helpers.cascades import cascade_of
from tests.helpers.factory import make_context, multiplexed, random_model, tiny_tokenizer
from tests.helpers.jobs import texts

TASK: dict[str, Any] = {"tokens": "token-classification"}
ROUNDS = ["--rounds", "1"]


def shaped(shape: str, seed: int = 0) -> Model:
    if shape == "cascade":
        first, second = (random_model(heads=(4, 4), labels=3, seed=seed + i) for i in (0, 9))
        cascade = cascade_of(0.2, first=first, second=second)
        return replace(cascade, tokenizer=tiny_tokenizer())
    kind = TASK.get(shape, "text-classification")
    model = random_model(heads=(4, 4), labels=3, task=kind, seed=seed)
    model = multiplexed(model, n=2) if shape == "mixed" else model
    return replace(model, tokenizer=tiny_tokenizer())


def artifact(folder: Path, shape: str = "plain", seed: int = 0) -> Path:
    """A result with certified answers, as a run writes it."""
    model = shaped(shape, seed)
    save_artifact(model, folder)
    Onnx(fusion="none", precision="fp32").emit(model, make_context(model), folder)
    given = texts(70, seed=5)
    rows = Rows((), words=tuple(tuple(x.split()) for x in given))
    if shape != "tokens":
        second = tuple(texts(70, seed=6)) if shape == "pairs" else None
        rows = Rows(tuple(given), second)
    coded = encode(rows, tiny_tokenizer(), model.encoder)
    engine = Onnx(precision="fp32").engine(folder, 1)
    mixing: dict[str, Any] = {"slots": 2, "seed": 3} if shape == "mixed" else {}
    logits = row_logits(engine.run, coded, None, **mixing)
    answers = predict(engine.run, coded, model.task, None, **mixing)
    facts = CertifiedFacts(
        metric="accuracy",
        limit=0.02,
        loss_upper=0.015,
        confidence=0.95,
        certified_rows=700,
        seed=3,
        engine=dict(engine.describe()),
        files=digests(folder),
    )
    kept = KeptAnswers(
        facts, rows, coded.ids, tuple(logits), tuple(answers), scored_positions(coded)
    )
    write_answers(kept, folder)
    return folder


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.export.benchmark.run.LEAST_MS", 1.0)


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("certified") / "plain")


@pytest.fixture
def copied(certified: Path, tmp_path: Path) -> Path:
    return shutil.copytree(certified, tmp_path / "copied")


@pytest.mark.parametrize("shape", ["plain", "pairs", "mixed", "tokens"])
def test_what_is_kept_is_read_again(shape: str, tmp_path: Path) -> None:
    folder = artifact(tmp_path, shape)
    kept = read_answers(folder)
    write_answers(kept, tmp_path)
    again = read_answers(tmp_path)
    assert (again.facts, again.rows.contents()) == (kept.facts, kept.rows.contents())
    assert again.ids.tolist() == kept.ids.tolist()
    for a, b in zip(again.logits, kept.logits, strict=True):
        np.testing.assert_array_equal(a, b)
    assert main(["--verify", str(folder), "--device", "cpu", *ROUNDS]) == 0


def test_a_text_with_line_ends_of_unicode_is_kept_on_its_line(copied: Path) -> None:
    kept = read_answers(copied)
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\r\ng\x1ch"
    rows = replace(kept.rows, text_a=(odd, *kept.rows.text_a[1:]))
    write_answers(replace(kept, rows=rows), copied)
    assert read_answers(copied).rows.text_a == rows.text_a


def test_the_same_artifact_is_accepted(
    certified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--verify", str(certified), "--threads", "2", *ROUNDS]) == 0
    said = capsys.readouterr().out
    assert "equal labels  70 of 70" in said
    assert "budget        holds: loss at most 1.50 points, 2.00 allowed" in said
    assert "batch 1 " in said
    assert "batch 32 " in said


def test_the_report_is_one_json_document(
    certified: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--verify", str(certified), "--json", "-q", *ROUNDS]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["rows"], report["faults"], report["parity"]["agreement"]) == (70, [], 1.0)
    assert [x["batch"] for x in report["entries"]] == [1, 32]
    assert report["engine"]["engine"] == "onnxruntime"


def flipped(folder: Path, at: float) -> None:
    """One bit of the engine differs."""
    graph = folder / "model.onnx"
    raw = bytearray(graph.read_bytes())
    raw[int(at * len(raw))] ^= 1
    graph.write_bytes(raw)


def of_another_model(name: str) -> Callable[[Path], None]:
    def swap(folder: Path) -> None:
        other = artifact(folder.with_name("other"), seed=1)
        shutil.copyfile(other / name, folder / name)

    return swap


def other_words(folder: Path) -> None:
    """Another vocabulary: the same words get other ids."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda x: flipped(x, 0.0), "not the certified files: model.onnx"),
        (lambda x: flipped(x, 0.5), "not the certified files: model.onnx"),
        (lambda x: flipped(x, 0.97), "not the certified files: model.onnx"),
        (of_another_model("model.onnx"), "not the certified files: model.onnx"),
        (other_words, "the tokenizer of"),
    ],
    ids=["first byte", "a weight", "near the end", "another graph", "another tokenizer"],
)
def test_another_engine_or_tokenizer_is_caught(
    copied: Path, change: Any, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    change(copied)
    assert main(["--verify", str(copied), *ROUNDS]) == 4
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) <= 8


def without_digests(folder: Path, **facts: Any) -> None:
    """As if the engine had been built here: only its answers can tell."""
    path = folder / FILE
    first, *rows = path.read_text().splitlines()
    changed = {**json.loads(first), "files": {}, **facts}
    path.write_text("\n".join([json.dumps(changed), *rows]) + "\n")


def test_answers_alone_give_another_graph_away(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    of_another_model("model.onnx")(copied)
    of_another_model("config.json")(copied)
    without_digests(copied)
    assert main(["--verify", str(copied), *ROUNDS]) == 4
    error = capsys.readouterr().err
    assert "logits differ by up to" in error
    assert "points here, the budget allows 2.00" in error


def test_a_loss_beyond_the_budget_is_caught(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Small differences that turn labels count by what they cost."""
    path = copied / FILE
    first, *rows = path.read_text().splitlines()
    for i in range(3):  # certified for three rows: another label, hardly another logit
        row = json.loads(rows[i])
        top, second, _ = sorted(row["logits"], reverse=True)
        at = row["logits"].index(second)
        row["logits"][at], row["reference"] = top + 1e-6, at
        rows[i] = json.dumps(row)
    path.write_text("\n".join([first, *rows]) + "\n")
    without_digests(copied, engine={"precision": "int8"})
    assert main(["--verify", str(copied), *ROUNDS]) == 4
    assert "the loss is at most 5.79 points here, the budget allows 2.00" in (
        capsys.readouterr().err
    )
    without_digests(copied, engine={"precision": "int8"}, limit=0.06)
    assert main(["--verify", str(copied), *ROUNDS]) == 0
    assert "equal labels  67 of 70" in capsys.readouterr().out


def test_what_cannot_be_verified(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--verify", str(copied), "another", *ROUNDS]) == 2
    assert "--verify takes one result" in capsys.readouterr().err
    assert main([]) == 2
    assert "the following arguments are required: A" in capsys.readouterr().err
    assert main(["--verify", str(tmp_path / "none")]) == 2
    path = copied / FILE
    whole = path.read_text()
    for bad in ("", "{}\n", whole[: len(whole) // 2], whole.replace('"ids"', '"idz"')):
        path.write_text(bad)
        capsys.readouterr()
        assert main(["--verify", str(copied)]) == 2
        assert "is damaged" in capsys.readouterr().err
    path.unlink()
    assert main(["--verify", str(copied)]) == 2
    assert "without --no-keep-answers" in capsys.readouterr().err


@pytest.mark.skipif(gpu_here(), reason="a GPU is here")
@pytest.mark.parametrize("plan", ["model.plan", "model.rtx.plan"])
def test_a_plan_needs_what_runs_it(
    plan: str, copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / plan).write_bytes(b"a plan")
    assert main(["--verify", str(copied), *ROUNDS]) == 5
    assert "--device cpu verifies the typed graph" in capsys.readouterr().err
    assert main(["--verify", str(copied), "--device", "cpu", *ROUNDS]) == 0


class Served(BaseHTTPRequestHandler):
    """Answers as a Triton server does that runs a graph. The real one: test_triton_server."""

    engine: Any

    def do_GET(self) -> None:
        config = {"backend": "onnxruntime", "max_batch_size": 64}
        names = [{"name": x} for x in ("input_ids", "attention_mask", "token_type_ids")]
        self._answer({"version": "2"} if self.path == "/v2" else {**config, "input": names})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        inputs = {x["name"]: np.reshape(x["data"], x["shape"]) for x in asked["inputs"]}
        logits = self.engine.run(inputs)
        output = {"name": "logits", "shape": logits.shape, "data": logits.ravel().tolist()}
        self._answer({"outputs": [output]})

    def _answer(self, values: dict[str, Any]) -> None:
        text = json.dumps(values).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.mark.parametrize(("seed", "code"), [(0, 0), (1, 4)])
def test_a_triton_server_is_asked(
    certified: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    seed: int,
    code: int,
) -> None:
    """The files here are the certified ones; the server runs them, or another model's."""
    behind = Onnx(precision="fp32").engine(artifact(tmp_path / "behind", seed=seed), 1)
    handler = type("Handler", (Served,), {"engine": behind})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"127.0.0.1:{server.server_port}"
        assert main(["--verify", str(certified), "--url", url, *ROUNDS]) == code
        server.shutdown()
    told = capsys.readouterr()
    assert "by triton 2" in told.out
    assert ("logits differ by up to" in told.err) == (code == 4)


def test_a_url_needs_a_result(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--url", "localhost:8000"]) == 2
    err = capsys.readouterr().err
    assert "write: prumux-bench --verify RESULT --url localhost:8000" in err


def moved(folder: Path, rows: int) -> None:
    """Write other certified logits of some rows, with the same labels."""
    kept = read_answers(folder)
    logits = [x * 9 if i < rows else x for i, x in enumerate(kept.logits)]
    write_answers(replace(kept, logits=tuple(logits)), folder)


def test_rows_at_a_cascades_threshold_may_move(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another processor rounds differently: one row of seventy may, two may not."""
    folder = artifact(tmp_path, "cascade")
    assert main(["--verify", str(folder), *ROUNDS]) == 0
    assert "other stage" not in capsys.readouterr().out
    moved(folder, 1)
    assert main(["--verify", str(folder), *ROUNDS]) == 0
    assert "other stage   1 rows at the threshold" in capsys.readouterr().out
    moved(folder, 2)
    assert main(["--verify", str(folder), *ROUNDS]) == 4
    assert "logits differ by up to" in capsys.readouterr().err
