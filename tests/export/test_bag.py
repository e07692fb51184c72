"""A bag of embeddings as an engine: answers, padding, files, and a cascade with it first."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import prumux
from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import verify
from prumux.export.onnx import Onnx
from prumux.export.runtime.ort import OrtEngine
from prumux.export.tensorrt import TensorRt
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.base.store import Store
from prumux.optimizer.model.artifact import load_artifact, save_artifact, to_config
from prumux.optimizer.model.cascade import ALL, module_of
from prumux.optimizer.model.families.bag import bag_sizes
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.model_store import ModelStore
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from tests.helpers.cascades import cascade_of
from tests.helpers.checkpoints import config, same, write
from tests.helpers.factory import (
    Family,
    make_context,
    random_batch,
    random_model,
    random_weights,
    tiny_tokenizer,
)
from tests.helpers.tensorrt_api import rtx_api

FP32 = Onnx(precision="fp32", fusion="none")


def random_bag(family: Family = "bert", buckets: int = 64, **fields: Any) -> Model:
    given = random_model(family, heads=(3, 3), head_dim=16, **fields)
    sizes = bag_sizes(given.encoder, given.encoder.labels, buckets)
    weights = random_weights(sizes, seed=3)
    return replace(given, encoder=sizes, weights=weights, masks=Masks.full(sizes))


def emitted(model: Model, text: str, folder: Path) -> OrtEngine:
    target = parse_target(text)
    target.emit(model, make_context(model, random_batch(model, rows=16)), folder)
    engine = target.engine(folder, 1)
    assert isinstance(engine, OrtEngine)
    return engine


@pytest.mark.parametrize("buckets", [0, 64])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("target", ["onnx{ragged=off}", "onnx{ragged=on}", "onnx{opset=20}"])
def test_the_graph_gives_the_modules_answers(
    target: str, family: Family, buckets: int, tmp_path: Path
) -> None:
    model = random_bag(family, buckets)
    engine, module = emitted(model, target, tmp_path), EncoderModule(model).eval()
    for rows in (1, 7):
        inputs = random_batch(model, rows=rows, length=9, seed=rows).inputs()
        np.testing.assert_allclose(engine.run(inputs), run(module, inputs), atol=1e-5)


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_other_precisions(precision: str, tmp_path: Path) -> None:
    model = random_bag()
    engine = emitted(model, f"onnx{{precision={precision}}}", tmp_path)
    inputs = random_batch(model, rows=9).inputs()
    found, expected = engine.run(inputs), run(EncoderModule(model).eval(), inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5 if precision == "int8" else 5e-3)


def test_the_graph_for_tensorrt_gives_the_same_answers() -> None:
    model = random_bag()
    proto = build(model, portable=True)
    verify(proto)
    assert "Mod" not in {x.op_type for x in proto.graph.node}
    inputs = random_batch(model, rows=9).inputs()
    found: Any = ReferenceEvaluator(proto).run(None, inputs)
    np.testing.assert_allclose(found[0], run(EncoderModule(model).eval(), inputs), atol=1e-5)


@pytest.mark.parametrize("target", ["onnx{ragged=off}", "onnx{ragged=on}"])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padding_counts_nothing_on_either_side(
    target: str, family: Family, tmp_path: Path
) -> None:
    model = random_bag(family)
    engine, pad = emitted(model, target, tmp_path), model.encoder.pad_id
    row = np.arange(5, 11)[None]
    types = {"token_type_ids": np.zeros_like(row)} if model.encoder.token_types else {}
    alone = {"input_ids": row, "attention_mask": np.ones_like(row), **types}
    expected = engine.run(alone)
    np.testing.assert_allclose(run(EncoderModule(model).eval(), alone), expected, atol=1e-5)
    for sides in ((0, 4), (3, 0), (2, 2)):
        wide = {
            k: np.pad(x, ((0, 0), sides), constant_values=pad if k == "input_ids" else 0)
            for k, x in alone.items()
        }
        np.testing.assert_allclose(engine.run(wide), expected, atol=1e-5)
        found = run(EncoderModule(model).eval(), wide)
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("target", ["onnx{ragged=off}", "onnx{ragged=on}"])
def test_rows_of_one_token_and_of_none(target: str, tmp_path: Path) -> None:
    model = random_bag()
    engine = emitted(model, target, tmp_path)
    one = np.array([[7], [9]])
    inputs = {
        "input_ids": one,
        "attention_mask": np.array([[1], [0]]),
        "token_type_ids": one * 0,
    }
    found = engine.run(inputs)
    np.testing.assert_allclose(found, run(EncoderModule(model).eval(), inputs), atol=1e-5)
    bias = model.weights["head.output.bias"].numpy()
    np.testing.assert_allclose(found[1], bias, atol=1e-6)
    none = {k: x[:0] for k, x in inputs.items()}
    assert engine.run(none).shape == (0, 2)


@pytest.mark.parametrize("second", ["bert", "roberta"])
@pytest.mark.parametrize("threshold", [0.0, "one", ALL])
def test_a_cascade_with_it_first(threshold: Any, second: Family, tmp_path: Path) -> None:
    first = random_bag(second)
    other = random_model(second, heads=(3, 3), head_dim=16, seed=1)
    inputs = random_batch(first, rows=16).inputs()
    one, two = (run(EncoderModule(x).eval(), inputs) for x in (first, other))
    margin = np.sort(margins(one))
    limit = float(margin[:2].mean()) if threshold == "one" else threshold
    model = cascade_of(limit, first=first, second=other)
    for text in ("onnx{precision=fp32}", "onnx{precision=fp32 ragged=on}"):
        engine = emitted(model, text, tmp_path)
        told = engine.deferred(inputs) > 0
        assert told.sum() == {0.0: 0, "one": 1, ALL: 16}[threshold]
        expected = np.where(told[:, None], two, one)
        np.testing.assert_allclose(engine.run(inputs), expected, atol=1e-4)
    np.testing.assert_allclose(run(module_of(model).eval(), inputs), expected, atol=1e-4)


def saved(model: Model, folder: Path) -> Path:
    save_artifact(replace(model, tokenizer=tiny_tokenizer()), folder)
    FP32.emit(model, make_context(model, random_batch(model, rows=16)), folder)
    return folder


@pytest.mark.parametrize("cascade", [False, True])
def test_the_folder_loads_in_three_ways(cascade: bool, tmp_path: Path) -> None:
    model = random_bag()
    if cascade:
        model = cascade_of(0.2, first=model, second=random_model(heads=(3, 3), head_dim=16))
    folder = saved(model, tmp_path / "made")
    again = load_artifact(folder)
    assert same(model, again)
    assert again.encoder == model.encoder
    texts = ["good film", "bad", "a film and a play", ""]
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, return_token_type_ids=True, return_tensors="pt"
    )
    module = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        expected = module(**tokens).logits.numpy()
    predictor = prumux.load(folder)
    assert "onnxruntime" in str(predictor.engine.describe())
    np.testing.assert_allclose(predictor.predict_logits(texts), expected, atol=1e-5)
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    given = {x.name: tokens[x.name].numpy() for x in session.get_inputs()}
    assert given.keys() == {"input_ids", "attention_mask", "token_type_ids"}
    np.testing.assert_allclose(session.run(None, given)[0], expected, atol=1e-5)
    module.save_pretrained(tmp_path / "saved")
    assert same(load_artifact_of(tmp_path / "saved", folder), again)


def load_artifact_of(folder: Path, tokenizer_of: Path) -> Model:
    for path in tokenizer_of.glob("*token*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return load_artifact(folder)


def test_the_graph_is_small() -> None:
    kinds = [x.op_type for x in build(random_bag()).graph.node]
    assert kinds.count("Gather") == 2
    assert kinds.count("MatMul") == 1
    assert len(kinds) < 30
    assert onnx.TensorProto.FLOAT16 not in {
        x.data_type for x in build(random_bag()).graph.initializer
    }


def test_a_stored_model_comes_back() -> None:
    model = random_bag()
    given = random_model(heads=(3, 3), head_dim=16)
    with tempfile.TemporaryDirectory() as folder:
        store, pipeline = ModelStore(given, Store(Path(folder))), Pipeline.parse("bag")
        store.save(pipeline, model)
        assert same(store.load(pipeline), model)
        assert store.load(pipeline).encoder == model.encoder


def test_damaged_sizes_are_refused(tmp_path: Path) -> None:
    from prumux.optimizer.model.artifact import from_config

    good = to_config(random_bag())
    assert from_config(good)[0] == random_bag().encoder
    for key, value in (("buckets", "many"), ("buckets", 2**50)):
        encoder = {**good["encoder"], "constants": {key: value}}
        with pytest.raises(ModelError, match="not one that prumux wrote"):
            from_config({**good, "encoder": encoder})
    wrong = {**good, "encoder": {**good["encoder"], "constants": {}}}
    with pytest.raises(ModelError, match="not one that prumux wrote"):
        from_config(wrong)


def test_no_checkpoint_is_of_this_family(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", config("bert"), None)
    (folder / "config.json").write_text(
        (folder / "config.json").read_text().replace('"bert"', '"bag"')
    )
    with pytest.raises(ModelError, match="model_type 'bag'"):
        load_model(str(folder))


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_tensorrt_for_rtx_builds_it(precision: Any, tmp_path: Path) -> None:
    rtx_api()  # skips where it is not installed
    model = random_bag()
    batches = [random_batch(model, 6, length, seed=length) for length in (5, 12)]
    target = TensorRt(precision, flavor="rtx")
    done = target.emit(model, make_context(model, *batches), tmp_path)
    assert done.notes["parity"][precision] <= done.notes["limit"]
    assert (tmp_path / "model.rtx.plan").exists()
