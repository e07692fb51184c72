"""Whole runs with `trim-vocabulary`: what is scored, written, loaded and refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import block
from prumux.optimizer.model.source import load_model
from tests.helpers import jobs
from tests.helpers.checkpoints import config, write
from tests.helpers.datafiles import write as write_rows
from tests.helpers.embeddings import scored_pairs, sentence_folder
from tests.helpers.pieces import WORDS, with_pieces

TRIM = "trim-vocabulary{margin=0}"


def sized(kind: str, family: str = "bert", **changes: Any) -> dict[str, Any]:
    whole = with_pieces(kind)
    sizes = {
        k: v for k, v in jobs.CONFIG.items() if k.endswith(("_size", "_layers", "_heads"))
    }
    sizes |= {"vocab_size": len(whole), "pad_token_id": whole.pad_token_id}
    return config(family, **{**sizes, "max_position_embeddings": 40, **changes})


def spoken(rows: int, seed: int, words: list[str]) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(words, random.integers(2, 7))) for _ in range(rows)]


def job_of(here: Path, kind: str, of: dict[str, Any]) -> list[str]:
    """A model and its data: the last words are in certify and test rows only."""
    model = write(here / "model", of)
    if of["model_type"] == "bert":  # so that both classes are about as likely
        jobs.model_folder(model, of, with_pieces(kind), Rows(tuple(spoken(400, 9, WORDS))))
    with_pieces(kind).save_pretrained(str(model))
    rows = {"train": (300, WORDS[:-3]), "validation": (600, WORDS), "test": (200, WORDS)}
    given = load_model(str(model))
    for seed, (name, (count, words)) in enumerate(rows.items()):
        texts = spoken(count, seed, words)
        coded = jobs.coded_by(given, Rows(tuple(texts)))
        answers = predict(torch_run(given), coded, given.task)
        columns = {"text": texts, "label": np.asarray(answers).tolist()}
        if of["model_type"] != "bert":  # its answers are all the same
            del columns["label"]
        write_rows(here / "data" / f"{name}.jsonl", **columns)
    return [str(model), "--data", str(here / "data"), "-q"]


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return job_of(tmp_path_factory.mktemp("job"), "bert", sized("bert"))


@pytest.fixture(scope="module")
def done(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert main([*job, "--passes", TRIM, "--budget", "25%", "--out", str(out)]) == 0
    return out


def test_the_loss_is_that_of_texts_with_dropped_pieces(done: Path) -> None:
    report = report_of(done)
    assert report["met"]
    found, score = report["vocabulary"], report["scores"]
    assert found["pieces"] < found["pieces_dense"]
    assert found["tokenizer_bytes"] < found["tokenizer_bytes_dense"]
    assert found["other_pieces_select"] == 0  # its words are those of the fit rows
    assert 0.1 < found["other_pieces_certify"] < 1
    assert 0.1 < found["other_pieces_test"] < 1
    assert 0 < score["certify"]["loss"] == report["proofs"][-1]["loss"]
    assert report["trials"][-1]["loss"] == 0
    assert report["file_bytes"]["optimised"] < report["file_bytes"]["dense"]
    page = (done / "report.html").read_text()
    assert "Texts with dropped pieces are spelt by smaller ones: 0.00% of the select" in page


def test_the_result_loads_everywhere_with_the_same_ids(job: list[str], done: Path) -> None:
    given, made = load_model(job[0]), load_model(str(done))
    small = AutoTokenizer.from_pretrained(str(done))
    assert len(small) == made.encoder.vocab < given.encoder.vocab
    texts = spoken(40, 9, WORDS)
    read = AutoModelForSequenceClassification.from_pretrained(str(done)).eval()
    with torch.no_grad():
        logits = read(**small(texts, padding=True, return_tensors="pt")).logits
    answers: Any = prumux.load(done).predict(texts)
    assert [x.label for x in answers] == [made.task.labels[i] for i in logits.argmax(-1)]
    coded = jobs.coded_by(made, Rows(tuple(texts)))
    assert [x.tolist() for x in coded.ids] == small(texts)["input_ids"]


def test_the_result_verifies_and_is_a_model_again(
    done: Path, job: list[str], tmp_path: Path
) -> None:
    assert bench(["--verify", str(done)]) == 0
    command = [str(done), *job[1:], "--passes", "prune{sparsity=0.2},slice"]
    assert main([*command, "--out", str(tmp_path / "again")]) == 0
    assert report_of(tmp_path / "again")["scores"]["certify"]["score_dense"] < 1


@pytest.mark.parametrize("more", [["--length", "data"], ["--text"]])
def test_it_is_timed_beside_the_given_model(
    more: list[str], job: list[str], done: Path
) -> None:
    """Each with its own ids: those of the given model are beyond the smaller table."""
    for order in ([job[0], str(done)], [str(done), job[0]]):
        command = [*order, "--data", job[2], "--batch", "8", "--rounds", "2", "-q", *more]
        assert bench(command) == 0


def test_a_result_of_a_search_is_trimmed(job: list[str], tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    command = [*job, "--passes", "pool-early", "--out", str(first)]
    assert main(command) == 0
    assert main([str(first), *job[1:], "--passes", TRIM, "--out", str(second)]) == 0
    sizes, found = load_model(str(first)).encoder, load_model(str(second)).encoder
    assert found.layers == sizes.layers
    assert found.vocab < sizes.vocab


def test_an_interrupted_run_goes_on(job: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*job, "--passes", f"prune{{sparsity=0.2}},slice,{TRIM}", "--out", str(out)]
    jobs.interrupted_and_resumed(command)
    assert report_of(out)["vocabulary"]["pieces"] == load_model(str(out)).encoder.vocab
    assert bench(["--verify", str(out)]) == 0


def test_a_space_of_margins_is_searched(job: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    space = "slice,trim-vocabulary{margin=0|0.5}"
    assert main([*job, "--passes", space, "--budget", "25%", "--out", str(out)]) == 0
    assert len(report_of(out)["trials"]) >= 1
    assert report_of(out)["vocabulary"] is not None


def test_int8_and_mixed_rows(job: list[str], tmp_path: Path) -> None:
    out, passes = tmp_path / "out", f"pool-early,mux{{n=2}},{TRIM}"
    target = ["--target", "onnx{precision=int8}"]
    assert main([*job, "--passes", passes, *target, "--out", str(out)]) == 0
    assert report_of(out)["mux"] is not None
    assert bench(["--verify", str(out)]) == 0


@pytest.mark.parametrize(
    ("kind", "family"), [("roberta", "roberta"), ("xlm-roberta", "xlm-roberta")]
)
def test_other_tokenizers(kind: str, family: str, tmp_path: Path) -> None:
    of = sized(kind, family, type_vocab_size=1, classifier_dropout=None)
    job = job_of(tmp_path, kind, of)
    assert main([*job, "--passes", TRIM, "--out", str(tmp_path / "out")]) == 0
    made = load_model(str(tmp_path / "out"))
    assert made.encoder.pad_id == 1
    assert report_of(tmp_path / "out")["vocabulary"]["pieces"] == made.encoder.vocab
    assert bench(["--verify", str(tmp_path / "out")]) == 0


def test_words(tmp_path: Path) -> None:
    of = sized("bert", architectures=["XForTokenClassification"])
    model = jobs.model_folder(tmp_path / "model", of, with_pieces("bert"))
    data = jobs.data_folder(tmp_path / "data", model)
    out = str(tmp_path / "out")
    assert main([str(model), "--data", str(data), "-q", "--passes", TRIM, "--out", out]) == 0
    assert report_of(Path(out))["vocabulary"]["other_pieces_certify"] > 0


def test_vectors(tmp_path: Path) -> None:
    whole = with_pieces("bert")
    model = sentence_folder(tmp_path / "model", vocab_size=len(whole))
    whole.save_pretrained(str(model))
    data = scored_pairs(tmp_path / "data", model)
    out = tmp_path / "out"
    command = [str(model), "--data", str(data), "-q", "--passes", TRIM]
    assert main([*command, "--out", str(out)]) == 0
    assert report_of(out)["vocabulary"]["other_pieces_certify"] > 0
    assert bench(["--verify", str(out)]) == 0
    texts = spoken(5, 0, WORDS)
    found = prumux.load(out).encode(texts)
    with torch.no_grad():
        made = load_model(str(out))
        rows = jobs.coded_by(made, Rows(tuple(texts)))
        expected = torch_run(made)(block(rows, 0, 5))
    assert np.abs(found - expected).max() < 1e-5


def word_level() -> Any:
    words = {x: i for i, x in enumerate(["[PAD]", "[UNK]", *dict.fromkeys(WORDS)])}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    make: Any = PreTrainedTokenizerFast
    return make(tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]")


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ("trim-vocabulary", "its kind is WordLevel; pieces can go where it is WordPiece, BPE"),
        ("trim-vocabulary,slice", "'slice' stands after 'trim-vocabulary'"),
    ],
)
def test_refused_before_anything_is_built(
    passes: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = jobs.model_folder(tmp_path / "model", sized("bert"), word_level())
    data = jobs.data_folder(tmp_path / "data", model)
    command = [str(model), "--data", str(data), "--passes", passes]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
