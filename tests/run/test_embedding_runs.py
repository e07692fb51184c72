"""Whole runs on tiny embedding models, and what can be done with their results."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from transformers import AutoModel

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.optimizer.base.errors import PassError, UsageError
from prumux.optimizer.cli.opt import main
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.report.json_schema import text as schema_text
from prumux.optimizer.tasks import neighbours
from tests.helpers.datafiles import write as write_rows
from tests.helpers.embeddings import (
    encoder_folder,
    retrieval_folder,
    scored_pairs,
    sentence_folder,
)
from tests.helpers.factory import make_context
from tests.helpers.jobs import model_folder, texts

CUT = "prune{sparsity=0.3 of=macs},slice,reconstruct"
SOME = ["abc def ghi", "xyz abc", "one two three four five six seven"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = {"prompts": {"query": "abc "}, "default_prompt_name": None}
    return sentence_folder(tmp_path_factory.mktemp("model") / "m", settings=settings)


def optimise(*arguments: Any, expect: int = 0) -> None:
    assert main([*map(str, arguments), "--quiet"]) == expect


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    Draft202012Validator(json.loads(schema_text())).validate(found)
    return found


@pytest.fixture(scope="module")
def on_pairs(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The result of a search on pairs with scores."""
    folder = tmp_path_factory.mktemp("pairs")
    data = scored_pairs(folder / "data", model)
    out = folder / "out"
    optimise(model, "--data", data, "--passes", CUT, "--budget", "30%", "--out", out)
    return out


def test_scored_pairs(on_pairs: Path) -> None:
    report = report_of(on_pairs)
    certify = report["scores"]["certify"]
    assert (report["metric"], certify["method"], certify["rows"]) == (
        "spearmanr",
        "bootstrap",
        600,
    )
    assert report["met"]
    assert certify["loss_upper"] <= 0.3
    classes = report["classes"]["certify"]
    assert 0.05 < classes["agreement"] < 1
    assert 0.5 < classes["cosine"] < 1
    assert report["scores"]["test"]["rows"] == 600
    page = (on_pairs / "report.html").read_text()
    assert "have a mean cosine of" in page
    assert "model.encode(" in page
    card = (on_pairs / "README.md").read_text()
    assert "pipeline_tag: sentence-similarity\n" in card
    assert "\n- sentence-transformers\n- feature-extraction\n" in card
    assert "model.encode(" in card


def test_encode_gives_the_vectors(on_pairs: Path, model: Path) -> None:
    loaded = prumux.load(on_pairs)
    found = loaded.encode(SOME)
    assert found.shape == (3, 24)
    assert found.dtype == np.float32
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    asked = loaded.encode(SOME, prompt_name="query")
    assert asked == pytest.approx(loaded.encode([f"abc {x}" for x in SOME]), abs=1e-6)
    assert asked == pytest.approx(loaded.encode(SOME, prompt="abc "), abs=1e-6)
    assert loaded.encode([]).shape == (0, 24)
    pairs: Any = [("a", "b")]
    for call, message in (
        (lambda: loaded.encode("a text"), r"encode takes a list.*\n?.*encode\("),
        (lambda: loaded.encode(pairs), "encode takes single texts"),
        (lambda: loaded.encode(SOME, prompt_name="x"), "no prompt 'x', it has query"),
        (lambda: loaded.encode(SOME, batch_size=0), "batch_size is 0"),
        (lambda: loaded.predict(SOME), r"call encode\("),
    ):
        with pytest.raises(UsageError, match=message):
            call()
    del model


def test_encode_is_for_embedding_models(tmp_path: Path) -> None:
    classifier = model_folder(tmp_path / "c")
    data = write_rows(tmp_path / "v.jsonl", text=texts(80, 0))
    out = tmp_path / "out"
    optimise(classifier, "--validation", data, "--passes", "pool-early", "--out", out)
    with pytest.raises(UsageError, match="does text-classification and gives no vectors"):
        prumux.load(out).encode(SOME)


def test_sentence_transformers_reads_the_result(on_pairs: Path) -> None:
    """Its steps: AutoModel gives states, modules.json says how to go on."""
    listed = json.loads((on_pairs / "modules.json").read_text())
    kinds = [x["type"].rpartition(".")[2] for x in listed]
    assert kinds == ["Transformer", "Pooling", "Normalize"]
    assert [x["path"] for x in listed] == ["", "1_Pooling", "2_Normalize"]
    pooling = json.loads((on_pairs / "1_Pooling" / "config.json").read_text())
    assert [k for k, x in pooling.items() if x is True] == [
        "include_prompt",
        "pooling_mode_mean_tokens",
    ]
    module = AutoModel.from_pretrained(on_pairs).eval()
    assert module.config.hidden_size == pooling["word_embedding_dimension"] == 24
    loaded = prumux.load(on_pairs)
    tokens = loaded.tokenizer(SOME, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = module(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    mean = (states * mask).sum(1) / mask.sum(1)
    assert neighbours.unit(mean.numpy()) == pytest.approx(loaded.encode(SOME), abs=1e-5)
    settings = json.loads((on_pairs / "config_sentence_transformers.json").read_text())
    assert settings["prompts"] == {"query": "abc "}
    graph = (on_pairs / "model.onnx").read_bytes()
    assert (on_pairs / "onnx" / "model.onnx").read_bytes() == graph


def test_the_library_itself(on_pairs: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    found = library.SentenceTransformer(str(on_pairs), device="cpu").encode(SOME)
    assert found == pytest.approx(prumux.load(on_pairs).encode(SOME), abs=1e-5)


def test_the_result_is_verified(on_pairs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["--verify", str(on_pairs), "--rounds", "2", "--quiet"]) == 0
    assert "budget        holds" in capsys.readouterr().out
    rows = (on_pairs / "certified_answers.jsonl").read_text().splitlines()
    facts = json.loads(rows[0])
    assert (facts["metric"], len(rows)) == ("agreement", 257)
    damaged = json.loads(rows[5])
    damaged["logits"] = [-x for x in damaged["logits"]]
    rows[5] = json.dumps(damaged)
    (on_pairs / "certified_answers.jsonl").write_text("\n".join(rows) + "\n")
    assert bench(["--verify", str(on_pairs), "--rounds", "2", "--quiet"]) == 4


def test_a_result_is_optimised_again_and_timed(
    model: Path, on_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_rows(tmp_path / "v.jsonl", text=texts(80, 0))
    out = tmp_path / "out"
    optimise(
        *(on_pairs, "--validation", data, "--passes", "prune{sparsity=0.5},slice"),
        *("--dimensions", "8", "--out", out),
    )
    assert prumux.load(out).encode(SOME).shape == (3, 8)
    capsys.readouterr()
    models = [str(model), str(on_pairs), str(out)]
    assert bench([*models, "--rounds", "2", "--batch", "4", "--length", "9", "--json"]) == 0
    assert "rows_per_second" in capsys.readouterr().out


def test_text_to_vector_is_timed(
    model: Path, on_pairs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each text of a pair has a vector of its own."""
    pairs = str(on_pairs.parent / "data")
    line = ["--text", str(model), str(on_pairs), "--data", pairs, "--target", "onnx"]
    assert bench([*line, "--rounds", "2", "--json"]) == 0
    assert "rows_per_second" in capsys.readouterr().out


def test_queries_are_certified_by_query(model: Path, tmp_path: Path) -> None:
    data = retrieval_folder(tmp_path / "data", model, ("train", "dev", "test"))
    out = tmp_path / "out"
    optimise(model, "--data", data, "--passes", CUT, "--budget", "50%", "--out", out)
    report = report_of(out)
    certify = report["scores"]["certify"]
    assert (report["metric"], certify["method"], certify["rows"]) == (
        "ndcg@10",
        "betting",
        150,
    )
    assert certify["loss"] < certify["loss_upper"] <= 0.5
    assert report["classes"]["certify"]["cosine"] is None
    optimise(
        *(model, "--data", data, "--passes", CUT, "--budget", "60%", "--out", out),
        *("--metric", "recall@10", "--force"),
    )
    assert report_of(out)["metric"] == "recall@10"
    optimise(
        *(model, "--data", data, "--budget", "5%", "--metric", "spearmanr", "--dry-run"),
        expect=2,
    )


def test_texts_alone_are_judged_by_their_neighbours(tmp_path: Path) -> None:
    plain = encoder_folder(tmp_path / "plain")
    data = tmp_path / "data"
    for name in ("train", "validation"):
        write_rows(data / f"{name}.jsonl", text=texts(200, len(name)), label=[1, 0] * 100)
    out, common = tmp_path / "out", ("--data", data, "--passes", CUT, "--budget", "80%")
    optimise(plain, *common, "--pooling", "cls+mean", "--dimensions", "12", "--out", out)
    report = report_of(out)
    certify = report["scores"]["certify"]
    assert (report["metric"], certify["method"], certify["rows"]) == (
        "agreement",
        "betting",
        200,
    )
    assert certify["score_dense"] == 1.0
    assert any("single texts, and pairs have scores" in x for x in report["warnings"])
    assert prumux.load(out).encode(SOME).shape == (3, 12)
    sizes = json.loads((out / "2_Dense" / "config.json").read_text())
    assert (sizes["in_features"], sizes["out_features"]) == (48, 12)
    optimise(plain, *common, "--out", tmp_path / "no", expect=2)


def test_a_search_goes_on_where_it_was_stopped(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_rows(tmp_path / "v.jsonl", text=texts(400, 0))
    out = tmp_path / "out"
    command = (model, "--validation", data, "--budget", "60%", "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("prumux.optimizer.run.run.package", _stopped)
        with pytest.raises(KeyboardInterrupt):
            prumux.optimize(model, "60%", validation=data, out=out)
    assert not (out / "report.json").exists()
    optimise(*command, "--resume")
    report = report_of(out)
    assert report["scores"]["certify"]["method"] == "betting"
    assert report["trials"]


def _stopped(*_: Any) -> Any:
    raise KeyboardInterrupt


def test_training_brings_vectors_back(model: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("train", "validation"):
        write_rows(data / f"{name}.jsonl", text=texts(300, len(name)))
    cosines = {}
    cut = "prune{sparsity=0.6 of=macs},slice"
    for name, passes in (("cut", cut), ("trained", f"{cut},distill{{epochs=6 lr=0.001}}")):
        out = tmp_path / name
        optimise(model, "--data", data, "--passes", passes, "--out", out)
        cosines[name] = report_of(out)["classes"]["certify"]["cosine"]
    assert cosines["trained"] > cosines["cut"] + 0.02


def test_what_does_not_go_with_embeddings_is_refused(model: Path) -> None:
    given = load_model(str(model))
    ctx = make_context(given)
    with pytest.raises(PassError, match="mux mixes 2 rows") as caught:
        Pipeline.parse("mux{n=2}").run(given, ctx)
    assert caught.value.exit_code == 2
    with pytest.raises(PassError, match="the 24 hidden dimensions are the entries"):
        Pipeline.parse("prune-hidden{ratio=0.25},slice").run(given, ctx)


def test_hidden_dimensions_go_where_a_map_follows(tmp_path: Path) -> None:
    given = load_model(str(sentence_folder(tmp_path, None, ("Dense", "Normalize"))))
    small = Pipeline.parse("prune-hidden{ratio=0.25},slice").run(given, make_context(given))
    assert (small.encoder.hidden, small.encoder.labels) == (18, 16)
    small.verify()
