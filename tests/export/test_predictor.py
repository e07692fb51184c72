"""Loading an artifact with `load` and asking it for predictions."""

import pickle
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from prumux.export.benchmark.engines import open_engine
from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import save
from prumux.export.onnx import Onnx
from prumux.export.runtime.predictor import Predictor, load
from prumux.optimizer.base.errors import GateError, ModelError, UsageError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.artifact import load_artifact, save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.tasks.prediction import Prediction
from prumux.optimizer.tasks.regression import Regression
from tests.helpers.factory import (
    Family,
    make_context,
    multiplexed,
    overflowing,
    random_batch,
    random_model,
    tiny_tokenizer,
)

TEXTS = ["good film", "", "a bad player in a good play", "film " * 60, "bad"]
WORDS = [["good", "film"], [], ["Bad", "playing", "xyz", "a"], ["unseen"]]


def make_model(family: Family = "bert", **fields: Any) -> Model:
    model = random_model(family, heads=(6, 0, 12), ffn=(64, 64, 0), **fields)
    tokenizer = tiny_tokenizer(pad_id=model.encoder.pad_id)
    return replace(model, tokenizer=tokenizer)


def emit(model: Model, folder: Path) -> Path:
    save_artifact(model, folder)
    Onnx(fusion="basic").emit(model, make_context(model), folder)
    return folder


def by_hand(model: Model, *texts: Any, **options: Any) -> NDArray[Any]:
    """Logits of one text, by the tokenizer and the torch module alone."""
    tokenizer: Any = model.tokenizer
    options |= {"truncation": True, "max_length": _limit(model), "return_tensors": "np"}
    ids = tokenizer(*([x] for x in texts), return_token_type_ids=True, **options)
    types = ids["token_type_ids"] if model.encoder.token_types else None
    batch = Batch(np.arange(1), ids["input_ids"], ids["attention_mask"], types, None)
    found: NDArray[Any] = run(EncoderModule(model), batch.inputs())[0]
    return found


def _limit(model: Model) -> int:
    e = model.encoder
    return e.positions - (e.pad_id + 1 if e.positions_from == "padding" else 0)


@pytest.fixture(scope="module")
def model() -> Model:
    return make_model(labels=3)


@pytest.fixture(scope="module")
def folder(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emit(model, tmp_path_factory.mktemp("artifact"))


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return load(folder, threads=1)


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> tuple[Predictor, Model]:
    model = make_model(task="token-classification", labels=3)
    return load(emit(model, tmp_path_factory.mktemp("tagger")), threads=1), model


def test_predictions(predictor: Predictor, model: Model) -> None:
    assert predictor.engine.describe()["engine"] == "onnxruntime"
    found = predictor.predict(TEXTS, batch_size=2)
    assert len(found) == len(TEXTS)
    for text, prediction in zip(TEXTS, found, strict=True):
        assert isinstance(prediction, Prediction)
        logits = by_hand(model, text)
        shares = torch.tensor(logits).softmax(-1).tolist()
        assert list(prediction.scores) == ["LABEL_0", "LABEL_1", "LABEL_2"]
        assert list(prediction.scores.values()) == pytest.approx(shares, abs=1e-4)
        assert prediction.label == f"LABEL_{logits.argmax()}"
        assert prediction.score == max(prediction.scores.values())
        assert sum(prediction.scores.values()) == pytest.approx(1)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_logits_are_those_of_torch(family: Family, tmp_path: Path) -> None:
    model = make_model(family)
    found = load(emit(model, tmp_path)).predict_logits(TEXTS, batch_size=3)
    expected = np.stack([by_hand(model, x) for x in TEXTS])
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_pairs(predictor: Predictor, model: Model) -> None:
    pairs = [("good", "bad film"), ("play", ""), ("film " * 30, "bad " * 30)]
    found = predictor.predict_logits(pairs)
    expected = np.stack([by_hand(model, a, b) for a, b in pairs])
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_array_equal(predictor.predict_logits([list(x) for x in pairs]), found)


def test_any_iterable_and_no_texts(predictor: Predictor) -> None:
    assert predictor.predict([]) == []
    assert predictor.predict_logits([]).shape == (0, 3)  # type: ignore[union-attr]
    expected = predictor.predict(TEXTS)
    assert predictor.predict(x for x in TEXTS) == expected
    assert predictor.predict(np.array(TEXTS)) == expected


def test_neither_order_nor_company_matters(predictor: Predictor) -> None:
    alone = np.concatenate([np.asarray(predictor.predict_logits([x])) for x in TEXTS])
    back = np.asarray(predictor.predict_logits(TEXTS[::-1], batch_size=5))[::-1]
    np.testing.assert_allclose(back, alone, atol=1e-5)


def test_many_threads(predictor: Predictor) -> None:
    jobs = [TEXTS[i % 5 :] + TEXTS[: i % 5] for i in range(24)]
    expected = [np.asarray(predictor.predict_logits(x)) for x in jobs]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(predictor.predict_logits, jobs))
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_regression(tmp_path: Path) -> None:
    model = make_model(labels=1)
    model = replace(model, task=Regression(("score",)))
    predictor = load(emit(model, tmp_path))
    (found,) = predictor.predict(["good film"])
    assert isinstance(found, Prediction)
    assert found.label is None
    assert found.score == pytest.approx(by_hand(model, "good film").item(), abs=1e-4)
    assert found.scores == {}


def test_one_prediction_a_word(tagger: tuple[Predictor, Model]) -> None:
    predictor, model = tagger
    logits = predictor.predict_logits(WORDS, batch_size=2)
    assert [len(x) for x in logits] == [2, 0, 4, 1]
    expected = by_hand(model, WORDS[2], is_split_into_words=True)
    # [CLS] bad play ##ing x ##y ##z a [SEP]
    np.testing.assert_allclose(logits[2], expected[[1, 2, 4, 7]], atol=1e-4)
    found = predictor.predict(WORDS)
    assert [len(x) for x in found] == [2, 0, 4, 1]  # type: ignore[arg-type]
    row = found[2]
    assert isinstance(row, tuple)
    assert [x.label for x in row] == [f"LABEL_{i}" for i in logits[2].argmax(-1)]
    assert predictor.predict([]) == []


def test_long_rows_are_cut_into_windows(tagger: tuple[Predictor, Model]) -> None:
    predictor, model = tagger
    long = ["playing", "film"] * 100  # three tokens a pair, 38 fit beside the special ones
    logits = predictor.predict_logits([long, ["bad"]])[0]
    assert logits.shape == (200, 3)
    expected = by_hand(model, long, is_split_into_words=True)
    first = [i for i in range(1, 39) if i % 3 != 2]
    np.testing.assert_allclose(logits[: len(first)], expected[first], atol=1e-4)
    second = by_hand(model, long[len(first) :], is_split_into_words=True)
    np.testing.assert_allclose(logits[len(first)], second[1], atol=1e-4)


def test_words_without_tokens_are_unknown_ones(tagger: tuple[Predictor, Model]) -> None:
    predictor, model = tagger
    blank = "\u200b"
    (row,) = predictor.predict_logits([["good", blank, "film", ""]])
    filled = by_hand(model, ["good", "[UNK]", "film", "[UNK]"], is_split_into_words=True)
    plain = by_hand(model, ["good", "film"], is_split_into_words=True)
    np.testing.assert_allclose(row[[1, 3]], filled[[2, 4]], atol=1e-4)
    np.testing.assert_allclose(row[[0, 2]], plain[[1, 2]], atol=1e-4)
    assert predictor.predict_logits([[blank] * 90])[0].shape == (90, 3)
    predictor.tokenizer.unk_token = None
    try:
        with pytest.raises(
            UsageError, match=r"row 1: word 1 \(''\) has no tokens .*remove it"
        ):
            predictor.predict([["good"], ["good", ""]])
    finally:
        predictor.tokenizer.unk_token = "[UNK]"


def test_without_onnx_runtime_torch_runs(
    folder: Path, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found = load(folder)
    assert found.engine.describe()["engine"] == "torch"
    expected = np.asarray(predictor.predict_logits(TEXTS))
    np.testing.assert_allclose(found.predict_logits(TEXTS), expected, atol=1e-4)


def test_without_tensorrt_a_plan_is_not_looked_at(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    here = shutil.copytree(folder, tmp_path / "both")
    (here / "model.plan").write_bytes(b"x")
    assert load(here).engine.describe()["engine"] == "onnxruntime"


def test_without_a_graph_torch_runs(model: Model, tmp_path: Path) -> None:
    save_artifact(model, tmp_path)
    found = load(str(tmp_path))
    assert found.engine.describe()["engine"] == "torch"
    expected = np.stack([by_hand(model, x) for x in TEXTS])
    np.testing.assert_allclose(found.predict_logits(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("good film", r"takes a list, not a str\ncall predict\(\['good film'\]\)"),
        ("x" * 90, r"call predict\(\['x{56}\.\.\.\]\)"),
        (b"good", r"not a bytes\ncall predict\(\['a text'\]\)"),
        ({"text": "a"}, "takes a list, not a dict"),
        (None, "takes a list, not a NoneType"),
        (
            ["a", None],
            r"text 1 is None, a NoneType; give a str .*\ncall predict\(\['a text'\]",
        ),
        (["a", float("nan")], "text 1 is nan, a float"),
        (
            [("a", "b", "c")],
            r"text 0 is \('a', 'b', 'c'\), a tuple; .*\n.*\('one text', 'another'\)",
        ),
        ([("a", 1)], r"text 0 is \('a', 1\), a tuple"),
        (["a", ("b", "c")], "text 0 is a str, text 1 is not: give either pairs or single"),
        ([("b", "c"), "a"], "text 0 is a pair, text 1 is not"),
    ],
)
def test_bad_texts(predictor: Predictor, texts: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        predictor.predict(texts)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("good film", r"takes a list, not a str\ncall predict\(\[\['good', 'film'\]\]\)"),
        (["good", "film"], r"row 0 is 'good'; .* a list of str\ncall predict\(\[\['some'"),
        ([["good"], ["a", 1]], r"row 1 is \['a', 1\]; this model tags words"),
        (7, r"not a int\ncall predict\(\[\['some', 'words'\]\]\)"),
    ],
)
def test_bad_rows(tagger: tuple[Predictor, Model], rows: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        tagger[0].predict(rows)


@pytest.mark.parametrize("size", [0, -1, 1.5, "8", True])
def test_bad_batch_size(predictor: Predictor, size: Any) -> None:
    with pytest.raises(
        UsageError, match=f"batch_size is {size!r}: use a whole number, say 32"
    ):
        predictor.predict(["a"], batch_size=size)


def test_not_an_artifact(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"'.*nowhere' does not exist; .*prumux-opt wrote\ncheck"
    ):
        load(tmp_path / "nowhere")
    with pytest.raises(
        ModelError, match=r"model.onnx' is a file; .*\ncall prumux.load\('.*'\)"
    ):
        load(folder / "model.onnx")
    with pytest.raises(ModelError, match=r"no config.json\ngive a folder written by"):
        load(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(
        ModelError, match=r"holds a 'bert' model, .*\nmake one: prumux-opt .* --b"
    ):
        load(tmp_path)


def test_what_load_refuses(folder: Path, model: Model, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"threads is 0: use 1\.\.\d+, four times the"):
        load(folder, threads=0)
    with pytest.raises(UsageError, match=r"the folder is '': write, say, prumux.load\('my-"):
        load("")
    save_artifact(replace(model, tokenizer=None), tmp_path)
    with pytest.raises(ModelError, match=r"has no tokenizer\ncopy tokenizer.json"):
        load(tmp_path)
    save_artifact(model, tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(ModelError, match=r"model.onnx' cannot be opened by ONNX Runtime"):
        load(tmp_path)


STRANGERS: dict[str, tuple[dict[str, Any], str]] = {
    "labels": ({"labels": 4}, "logits a row\nconfig.json: 3\nengine: 4"),
    "task": (
        {"labels": 3, "task": "token-classification"},
        "logits a row\nconfig.json: 3\nengine: tokens, 3",
    ),
    "inputs": (
        {"labels": 3, "family": "distilbert"},
        "inputs\nconfig.json: input_ids, attention_mask, token_type_ids\n"
        "engine: input_ids, attention_mask\n",
    ),
    "width": ({"labels": 3, "hidden": 96}, "sizes\nconfig.json: encoder{hidden=48 "),
    "source": ({"labels": 3, "seed": 7}, "source model\nconfig.json: seed-0\nengine: seed-7"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_graph_of_another_model_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    fields, says = STRANGERS[name]
    here = shutil.copytree(folder, tmp_path / "mixed")
    save(build(make_model(**fields)), here)
    with pytest.raises(ModelError) as caught:
        load(here)
    assert f"'{here}' is mixed up, its engine is another model's: {says}" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 5
    with pytest.raises(ModelError, match="is mixed up"):
        open_engine(str(here), None, 1, "cpu", compiled=False)


def test_a_graph_that_mixes_other_numbers_of_rows_is_refused(
    folder: Path, model: Model, tmp_path: Path
) -> None:
    here = shutil.copytree(folder, tmp_path / "mixed")
    save(build(multiplexed(model, n=2)), here)
    with pytest.raises(ModelError, match=r"rows mixed\nconfig.json: 1\nengine: 2"):
        load(here)


@pytest.mark.parametrize("target", ["fusion=all", "precision=fp16", "precision=int8"])
def test_every_graph_of_a_folder_belongs_to_it(target: str, tmp_path: Path) -> None:
    model = replace(random_model(heads=(4, 3), hidden=64), tokenizer=tiny_tokenizer())
    save_artifact(model, tmp_path)
    again = load_artifact(tmp_path)
    for x in (model, again):  # what is loaded goes on from the same source
        parse_target(f"onnx{{{target}}}").emit(x, make_context(x), tmp_path)
        engine: Any = load(tmp_path).engine
        assert (engine.sizes, engine.origin) == (str(x.encoder), "seed-0")


def test_logits_that_are_not_finite_are_no_answer(tmp_path: Path) -> None:
    model = replace(overflowing(random_model(heads=(4, 3))), tokenizer=tiny_tokenizer())
    save_artifact(model, tmp_path)
    save(build(model, precision="fp16"), tmp_path)
    message = r"logits of 2 of 2 rows are not finite \(precision=fp16\)\n.*precision=fp32"
    with pytest.raises(GateError, match=message):
        load(tmp_path).predict(["good film", "bad"])


def test_a_random_batch_too(predictor: Predictor, model: Model) -> None:
    inputs = random_batch(model).inputs()
    expected = run(EncoderModule(model), inputs)
    np.testing.assert_allclose(predictor.engine.run(inputs), expected, atol=1e-4)


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    """Another process. It starts with the first task, and takes seconds to import torch."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as found:
        yield found


@pytest.mark.parametrize("max_wait_ms", [None, 5])
def test_a_predictor_goes_to_another_process(
    folder: Path,
    max_wait_ms: float | None,
    pool: ProcessPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder.parent)
    predictor = load(folder.name, threads=1, max_wait_ms=max_wait_ms, device="cpu")
    expected = np.asarray(predictor.predict_logits(TEXTS))  # a thread and locks are in use
    monkeypatch.chdir("/")  # the folder's path was relative
    found = pool.submit(Predictor.predict_logits, predictor, TEXTS).result(timeout=120)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    again = pickle.loads(pickle.dumps(predictor))
    assert type(again.runner) is type(predictor.runner)
    assert getattr(again.runner, "max_wait_ms", None) == max_wait_ms
    assert again.engine.describe() == predictor.engine.describe()
    assert again.engine.describe()["threads"] == "1"
    assert len(pickle.dumps(predictor)) < 1000, "the folder's path, and no weights"
    for x in (again, predictor):
        x.close()


def test_a_predictor_without_a_folder_is_not_pickled(predictor: Predictor) -> None:
    with pytest.raises(UsageError, match=r"not made by prumux.load\nuse prumux.load\(folder"):
        pickle.dumps(replace(predictor, reload=None))


def test_a_pickled_predictor_whose_folder_is_gone(folder: Path, tmp_path: Path) -> None:
    here = shutil.copytree(folder, tmp_path / "moved")
    data = pickle.dumps(load(here))
    shutil.rmtree(here)
    with pytest.raises(ModelError, match="moved' does not exist"):
        pickle.loads(data)
