"""A cascade as one ONNX graph: answers, shared weights, zero rows, and who may load it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx.reference import ReferenceEvaluator

import prumux
from prumux.export.graph.compose import DEFERRED, compose
from prumux.export.graph.graph import OUTPUT, build
from prumux.export.graph.graph_file import verify
from prumux.export.graph.int8 import lowered_names
from prumux.export.onnx import Onnx
from prumux.export.runtime import reference
from prumux.export.runtime.ort import OrtEngine
from prumux.export.tensorrt import TensorRt
from prumux.optimizer.base.errors import GateError, ModelError, VerifyError
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.cascade import module_of
from prumux.optimizer.model.families.registry import model_types
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.target import Target
from prumux.optimizer.tasks.prediction import Prediction
from tests.helpers.cascades import cascade_of
from tests.helpers.checkpoints import config, write
from tests.helpers.factory import (
    make_context,
    multiplexed,
    random_batch,
    random_model,
    tiny_tokenizer,
)

NONE, SOME, ALL = 0.0, 0.4, 3e38
FP32 = Onnx(precision="fp32", fusion="none")
WIDE: dict[str, Any] = {"hidden": 64, "head_dim": 16}
"""Wide enough for int8."""


def emitted(model: Model, target: Target, folder: Path, **batch: int) -> OrtEngine:
    context = make_context(model, random_batch(model, **{"rows": 16, **batch}))
    target.emit(model, context, folder)
    engine = target.engine(folder, 1)
    assert isinstance(engine, OrtEngine)
    return engine


def wide(threshold: float, **options: Any) -> Model:
    return cascade_of(
        threshold,
        first=random_model(heads=(4, 4), **WIDE),
        second=random_model(heads=(4, 4, 4), seed=1, **WIDE),
        **options,
    )


def inputs_of(model: Model, rows: int = 16, seed: int = 0) -> dict[str, Any]:
    return random_batch(model, rows=rows, seed=seed).inputs()


@pytest.mark.parametrize("threshold", [NONE, SOME, ALL])
@pytest.mark.parametrize(
    "family", sorted({*model_types()} - {"xlm-roberta", "camembert", "deberta-v2"})
)
def test_the_graph_gives_the_modules_answers(
    family: str, threshold: float, tmp_path: Path
) -> None:
    stages = [
        load_model(str(write(tmp_path / str(seed), config(family), None))) for seed in range(2)
    ]
    weights = {k: x.flip(0).contiguous() for k, x in stages[1].weights.items()}
    model = cascade_of(threshold, first=stages[0], second=replace(stages[1], weights=weights))
    engine, module = emitted(model, FP32, tmp_path, length=9), module_of(model).eval()
    for rows in (1, 7):
        inputs = random_batch(model, rows=rows, length=9, seed=rows).inputs()
        found = engine.run(inputs)
        assert found.shape == (rows, 2)
        np.testing.assert_allclose(found, run(module, inputs), atol=1e-4)
        told = engine.deferred(inputs)
        if threshold in (NONE, ALL):
            assert set(told.tolist()) == {float(threshold == ALL)}


@pytest.mark.parametrize("max_share", [1.0, 0.25])
@pytest.mark.parametrize("threshold", [NONE, SOME, ALL])
@pytest.mark.parametrize("slots", [1, 2])
def test_mixed_rows_and_bounded_shares(
    slots: int, threshold: float, max_share: float, tmp_path: Path
) -> None:
    first = random_model(heads=(4, 4), head_dim=12)
    first = multiplexed(first, slots) if slots > 1 else first
    model = cascade_of(threshold, first=first, max_share=max_share)
    engine, inputs = emitted(model, FP32, tmp_path), inputs_of(model)
    np.testing.assert_allclose(
        engine.run(inputs), run(module_of(model).eval(), inputs), atol=1e-4
    )
    below = margins(run(EncoderModule(model).eval(), inputs)) < threshold
    most = 16 if max_share == 1 else 4
    assert engine.deferred(inputs).sum() == min(most, int(below.sum()))
    assert engine.slots == slots


@pytest.mark.parametrize("max_share", [1.0, 0.25])
def test_onnx_itself_reads_the_graph_so(max_share: float) -> None:
    model = cascade_of(SOME, max_share=max_share)
    assert model.second is not None
    proto = compose(build(model), build(model.second.model), model.second)
    verify(proto)
    inputs = inputs_of(model, rows=8)
    found = dict(
        zip((OUTPUT, DEFERRED), ReferenceEvaluator(proto).run(None, inputs), strict=True)
    )
    expected = run(module_of(model).eval(), inputs)
    np.testing.assert_allclose(found[OUTPUT], expected, atol=1e-4)
    assert 0 < found[DEFERRED].sum() < 8


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_typed_graphs_are_valid(precision: Any) -> None:
    model = cascade_of(SOME, max_share=0.5)
    assert model.second is not None
    one, two = (build(x, 20, precision) for x in (model, model.second.model))
    verify(compose(one, two, model.second))


@pytest.mark.parametrize("threshold", [NONE, ALL])
@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_low_precisions_run_on_none_one_and_all_rows(
    precision: Any, threshold: float, tmp_path: Path
) -> None:
    target = Onnx(precision=precision, fusion="none")
    model = wide(threshold)
    assert model.second is not None
    engine = emitted(model, target, tmp_path / "both")
    one, two = (
        emitted(x, target, tmp_path / name)
        for name, x in (("1", replace(model, second=None)), ("2", model.second.model))
    )
    for rows in (16, 1):
        inputs = inputs_of(model, rows)
        alone = (two if threshold == ALL else one).run(inputs)
        np.testing.assert_allclose(engine.run(inputs), alone, atol=1e-5)
        assert engine.deferred(inputs).sum() == (rows if threshold == ALL else 0)


def test_exactly_one_row_is_deferred(tmp_path: Path) -> None:
    model = wide(ALL)
    inputs = inputs_of(model)
    margin = margins(run(EncoderModule(model).eval(), inputs))
    two = float(np.sort(margin)[:2].mean())
    assert model.second is not None
    model = replace(model, second=replace(model.second, threshold=two))
    engine = emitted(model, FP32, tmp_path)
    assert np.flatnonzero(engine.deferred(inputs)).tolist() == [int(margin.argmin())]
    alone = [engine.run({k: v[i : i + 1] for k, v in inputs.items()}) for i in range(16)]
    np.testing.assert_allclose(np.concatenate(alone), engine.run(inputs), atol=1e-4)


def test_both_stages_are_int8(tmp_path: Path) -> None:
    emitted(wide(SOME), Onnx(precision="int8", fusion="none"), tmp_path)
    names = lowered_names(onnx.load(tmp_path / "model.onnx"))
    for prefix in ("first.", "second."):
        assert [x for x in names if x.startswith(f"{prefix}layers.")]


@pytest.mark.parametrize("fusion", ["basic", "all"])
def test_fused_stages(fusion: Any, tmp_path: Path) -> None:
    model = cascade_of(SOME)
    engine = emitted(model, Onnx(precision="fp32", fusion=fusion), tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    fused = {x.output[0].split(".")[0] for x in graph.node if x.domain == "com.microsoft"}
    assert fused == {"first", "second"}
    inputs = inputs_of(model)
    expected = run(module_of(model).eval(), inputs)
    np.testing.assert_allclose(engine.run(inputs), expected, atol=1e-4)


def test_equal_tables_are_stored_once() -> None:
    model = cascade_of(SOME)
    assert model.second is not None
    table = model.weights["embeddings.word.weight"]
    second = model.second.model
    size = 4 * table.numel()

    def large(of: Model) -> list[str]:
        rule = replace(model.second, model=of) if model.second else None
        assert rule is not None
        proto = compose(build(model), build(of), rule)
        return [x.name for x in proto.graph.initializer if len(x.raw_data) == size]

    assert len(large(second)) == 2
    shared = replace(second, weights={**second.weights, "embeddings.word.weight": table})
    assert len(large(shared)) == 1


def test_the_graph_keeps_what_it_is_made_of() -> None:
    model = cascade_of(SOME)
    assert model.second is not None
    one, two = build(model), build(model.second.model)
    before = one.SerializeToString(), two.SerializeToString()
    compose(one, two, model.second)
    assert (one.SerializeToString(), two.SerializeToString()) == before
    other = build(random_model("distilbert"))
    with pytest.raises(VerifyError, match="different inputs"):
        compose(one, other, model.second)


def test_rows_at_the_threshold_may_go_either_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines round differently, so no parity check may fail for that."""
    model = cascade_of(ALL)
    batch = random_batch(model, rows=16)
    margin = margins(run(EncoderModule(model).eval(), batch.inputs()))
    at = float(np.sort(margin)[8])

    def moved(by: float) -> Model:
        assert model.second is not None
        return replace(model, second=replace(model.second, threshold=at + by))

    engine = emitted(moved(1e-5), FP32, tmp_path)
    other = reference.TorchReference(moved(-1e-5), [batch])
    assert other.compare(engine).max_abs_diff < 1e-4
    monkeypatch.setattr(reference, "EDGE", 1e-7)
    strict = reference.TorchReference(moved(-1e-5), [batch])
    assert strict.compare(engine).max_abs_diff > 0.01


def test_a_wrong_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prumux.export import onnx as target_module

    def swapped(one: Any, two: Any, rule: Any) -> Any:
        return compose(two, one, rule)

    monkeypatch.setattr(target_module, "compose", swapped)
    with pytest.raises(GateError, match=r"ONNX Runtime \(cascade\) against the torch module"):
        emitted(cascade_of(SOME), FP32, tmp_path)


def saved(model: Model, folder: Path) -> Path:
    """An artifact folder with an engine."""
    model = replace(model, tokenizer=tiny_tokenizer())
    save_artifact(model, folder)
    emitted(model, FP32, folder)
    return folder


def labels_of(folder: Path, texts: list[str]) -> list[str | None]:
    found = prumux.load(folder).predict(texts)
    return [x.label for x in found if isinstance(x, Prediction)]


def test_prumux_and_plain_onnx_runtime_load_it(tmp_path: Path) -> None:
    model = cascade_of(SOME)
    folder = saved(model, tmp_path)
    texts = ["good film", "bad play", "abc", "some longer text here"] * 4
    found = labels_of(folder, texts)
    tokens = tiny_tokenizer()(texts, padding=True, return_tensors="np")
    given = {**tokens, "token_type_ids": np.zeros_like(tokens["input_ids"])}
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    feed = {x.name: given[x.name].astype(np.int64) for x in session.get_inputs()}
    logits = session.run(None, feed)[0]
    assert found == [f"LABEL_{i}" for i in logits.argmax(-1)]
    (folder / "model.onnx").unlink()  # then torch answers
    assert labels_of(folder, texts) == found


def test_another_cascades_graph_is_refused(tmp_path: Path) -> None:
    folder = saved(cascade_of(SOME), tmp_path)
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for second in ({**whole["second"], "threshold": 1.5}, None):
        path.write_text(json.dumps({**whole, "second": second}))
        with pytest.raises(ModelError, match="another model's: second stage"):
            prumux.load(folder)


def test_triton_serves_the_graph_and_no_script_builds_it(tmp_path: Path) -> None:
    model = cascade_of(SOME)
    emitted(model, FP32, tmp_path)
    FP32.bundle(model, make_context(model), tmp_path)
    names = {x.name for x in tmp_path.rglob("*")}
    assert "config.pbtxt" in names
    assert "tensorrt.sh" not in names
    for target in (FP32, TensorRt(), TensorRt(flavor="rtx")):
        target.check_stages()
