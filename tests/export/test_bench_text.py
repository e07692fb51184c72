"""`prumux-bench --text`: from text to label, beside tokenizer and engine alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prumux.export.benchmark.cli import main
from prumux.export.benchmark.engines import open_engine
from prumux.export.benchmark.text import batches_of, repeated, texts_of, time_texts
from prumux.export.onnx import Onnx
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.certificate.kept_answers import FILE
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from tests.export.test_verify import artifact
from tests.helpers.datafiles import write
from tests.helpers.factory import make_context, multiplexed, random_model, tiny_tokenizer

ROUNDS = ["--rounds", "1", "--threads", "1", "--json", "-q"]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.optimizer.timing.interleave.LEAST_MS", 1.0)
    monkeypatch.setattr("prumux.export.benchmark.choose.LEAST_MS", 1.0)
    monkeypatch.setattr("prumux.export.benchmark.text.LEAST_TEXTS", 80)


@pytest.mark.parametrize("shape", ["plain", "pairs", "mixed", "tokens"])
def test_the_certified_texts_are_answered(
    shape: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(artifact(tmp_path / "r", shape))
    assert main(["--text", folder, *ROUNDS]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    (one,) = found["text"]
    assert one["texts"] == 140  # 70 certified rows, twice: 80 at least
    assert one["batch"] == 32
    alone = 1 / (1 / one["tokenizer_rows_per_second"] + 1 / one["engine_rows_per_second"])
    assert one["share"] == pytest.approx(one["rows_per_second"] / alone)
    assert one["share_low"] <= one["share"] <= one["share_high"]
    assert one["throughput_ratio"] == 1
    assert found["engines"][folder]["engine"] == "onnxruntime"


def test_dense_and_optimised_on_texts_of_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(artifact(tmp_path / "r"))
    texts = write(tmp_path / "texts.jsonl", text=["good film", "a bad one"] * 60)
    command = ["--text", folder, folder, "--data", str(texts), "--batch", "8"]
    assert main([*command, "--rounds", "2", "-q"]) == 0
    said = capsys.readouterr().out
    assert "tokenizer     engine      whole    of one after the other" in said
    assert f"{folder} (2)" in said
    assert "120 texts, batch 8; tokenizer alone: one call" in said


def test_whole_is_what_load_predicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens and batches of the engine alone are those of `predict`."""
    folder = artifact(tmp_path / "r")
    opened = open_engine(str(folder), None, 1, "cpu", compiled=False)
    rows = repeated(Rows(("good film", "bad", "a bad film", "good")), 50)
    assert len(rows) == 52
    ran: list[tuple[int, ...]] = []
    run = opened.engine.run

    def noted(inputs: Any) -> Any:
        ran.append(inputs["input_ids"].shape)
        return run(inputs)

    monkeypatch.setattr(opened.engine, "run", noted)
    time_texts([opened], rows, 8, 1, threads=1, cores=CoreMonitor())
    expected = [x["input_ids"].shape for x in batches_of(rows, opened, 8)]
    assert len(expected) == 7
    assert ran == expected * (len(ran) // 7)
    assert sum(n for n, _ in expected) == 52


def test_the_first_result_with_answers_gives_the_texts(tmp_path: Path) -> None:
    folder = artifact(tmp_path / "r")
    found = texts_of([str(tmp_path), str(folder)], None)
    assert len(found) == 140
    assert found.text_a[:70] == found.text_a[70:]


def saved(folder: Path, model: Model) -> str:
    save_artifact(model, folder)
    Onnx(fusion="none").emit(model, make_context(model), folder)
    return str(folder)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = replace(multiplexed(random_model(heads=(4, 4)), n=2), tokenizer=tiny_tokenizer())
    bare = saved(tmp_path / "bare", words)
    good = str(artifact(tmp_path / "r"))
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    damaged = artifact(tmp_path / "damaged")
    (damaged / FILE).write_text("{}\n")
    cases = (
        (["--text", bare], 2, f"none of the models holds a {FILE}"),
        (["--text", str(damaged)], 2, "is damaged"),
        (["--text", good, "--data", str(empty)], 2, "empty.jsonl"),
        (["--text", good, "--data", "nowhere"], 2, "nowhere"),
        (["--text", good, "--batch", "1,8"], 2, "--text takes texts as they are, and one"),
        (["--text", good, "--length", "8"], 2, "--text takes texts as they are, and one"),
        (["--text", str(Path(good) / "model.onnx"), good], 2, "needs a tokenizer, and"),
        (["--text"], 2, "the following arguments are required: A"),
    )
    for arguments, code, message in cases:
        assert main([*arguments, "-q"]) == code, arguments
        said = capsys.readouterr().err
        assert message in said
        assert said.startswith("prumux-bench: ")
        assert "Traceback" not in said


def test_repeated_rows_keep_pairs_and_words() -> None:
    found = repeated(Rows((), words=(("a", "b"), ("c",))), 3)
    assert found.words == (("a", "b"), ("c",)) * 2
    pairs = repeated(Rows(("a",), ("b",)), 2)
    assert (pairs.text_a, pairs.text_b) == (("a", "a"), ("b", "b"))
