"""The ragged layout: the padded graph's answers, whatever the mask, in every precision."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prumux.export.graph.builder import Precision
from prumux.export.graph.graph import LAYOUT, build
from prumux.export.graph.graph_file import verify
from prumux.export.graph.int8 import lower, lowered_names
from prumux.export.graph.rounding import rounding
from prumux.export.onnx import Onnx
from prumux.export.runtime import fusion_choice
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import SpecError
from prumux.optimizer.base.store import Store
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.timing.interleave import Timing
from tests.helpers.factory import (
    Family,
    make_context,
    multiplexed,
    random_batch,
    random_model,
)

Inputs = dict[str, np.ndarray[Any, Any]]
FAMILIES: tuple[Family, ...] = ("bert", "roberta", "distilbert", "electra")
SHAPES = ("dense", "uneven", "early", "mean", "tokens", "mux", "late mux", "mux tokens")
TURNS = [(FAMILIES[i % 4], shape) for i, shape in enumerate(SHAPES)]
"""Every shape once, every family twice."""


def shaped(family: Family, shape: str, hidden: int = 48) -> Model:
    uneven = {"heads": (6, 0, 12, 9), "ffn": (64, 64, 0, 64)}
    fields: dict[str, Any] = {"hidden": hidden}
    if shape != "dense":
        fields |= uneven
    if shape == "early":
        fields["pool_early"] = True
    if shape == "mean":
        fields["pooling"] = "mean"
    if shape.endswith("tokens"):
        fields["task"] = "token-classification"
    model = random_model(family, **fields)
    if shape.startswith("mux"):
        return multiplexed(model, 2)
    return multiplexed(model, 3, at=2) if shape == "late mux" else model


def opened(proto: onnx.ModelProto) -> OrtEngine:
    return OrtEngine(proto.SerializeToString(), threads=1)


def difference(a: OrtEngine, b: OrtEngine, inputs: Inputs, model: Model) -> float:
    """The largest difference of a logit; of real positions in token tasks."""
    real = slice(None) if model.encoder.pooled else inputs["attention_mask"] != 0
    one, two = a.run(inputs), b.run(inputs)
    assert one.shape == two.shape
    assert np.isfinite(two).all()
    return float(np.abs(one[real] - two[real]).max(initial=0))


@pytest.mark.parametrize(("family", "shape"), list(product(FAMILIES, SHAPES)))
def test_any_batch_gives_the_padded_graphs_logits(family: Family, shape: str) -> None:
    model = shaped(family, shape)
    proto = build(model, ragged=True)
    verify(proto)
    padded, ragged = opened(build(model)), opened(proto)
    for rows, length in ((1, 1), (1, 7), (3, 1), (6, 30)):
        inputs = random_batch(model, rows, length).inputs()
        assert difference(padded, ragged, inputs, model) < 1e-5
        full = inputs | {"attention_mask": np.ones_like(inputs["attention_mask"])}
        assert difference(padded, ragged, full, model) < 1e-5


@pytest.mark.parametrize(("family", "shape"), TURNS)
def test_rows_without_tokens_change_nothing(family: Family, shape: str) -> None:
    """Triton warms an engine up with masks of zeros."""
    model = shaped(family, shape)
    padded, ragged = opened(build(model)), opened(build(model, ragged=True))
    inputs = random_batch(model, 6, 9).inputs()
    none = {k: np.zeros_like(v) for k, v in inputs.items()}
    assert difference(padded, ragged, none, model) < 1e-5
    inputs["attention_mask"][2:4] = 0
    assert difference(padded, ragged, inputs, model) < 1e-5


@pytest.mark.parametrize(("family", "shape"), TURNS)
def test_a_batch_without_rows_runs(family: Family, shape: str) -> None:
    model = shaped(family, shape, hidden=64)
    inputs = {k: v[:0] for k, v in random_batch(model, 6, 9).inputs().items()}
    ragged = build(model, ragged=True)
    for proto in (ragged, lower(ragged)):
        assert difference(opened(build(model)), opened(proto), inputs, model) == 0


@pytest.fixture(
    scope="module",
    params=[
        ("bert", "uneven"),
        ("roberta", "mean"),
        ("bert", "mux tokens"),
        ("electra", "late mux"),
    ],
)
def pair(request: Any) -> tuple[Model, OrtEngine, OrtEngine]:
    """A model in both layouts."""
    model = shaped(*request.param)
    return model, opened(build(model)), opened(build(model, ragged=True))


@settings(deadline=None, max_examples=40)
@given(
    mask=arrays(
        np.int64, st.tuples(st.just(6), st.integers(1, 9)), elements=st.integers(0, 1)
    ),
    seed=st.integers(0, 99),
)
def test_any_mask_gives_the_padded_graphs_logits(
    pair: tuple[Model, OrtEngine, OrtEngine], mask: Any, seed: int
) -> None:
    """Padding on the left or in between as well, and rows without tokens."""
    model, padded, ragged = pair
    inputs = random_batch(model, len(mask), mask.shape[1], seed).inputs()
    assert difference(padded, ragged, inputs | {"attention_mask": mask}, model) < 1e-5


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("family", "shape"), TURNS)
def test_low_floats_are_as_near_as_the_padded_ones(
    family: Family, shape: str, precision: Precision
) -> None:
    model = shaped(family, shape)
    inputs = random_batch(model, 6).inputs()
    real = slice(None) if model.encoder.pooled else inputs["attention_mask"] != 0
    wanted = run(EncoderModule(model), inputs)[real]
    proto = build(model, precision=precision, ragged=True)
    verify(proto)
    found = opened(rounding(proto)).run(inputs)[real]
    share = 0.02 if precision == "fp16" else 0.1
    np.testing.assert_allclose(found, wanted, atol=share * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize(("family", "shape"), TURNS)
def test_int8_lowers_the_same_maps(family: Family, shape: str) -> None:
    model = shaped(family, shape, hidden=64)
    plain, graph = lower(build(model)), lower(build(model, ragged=True))
    verify(graph)
    assert lowered_names(graph) == lowered_names(plain)
    assert len(lowered_names(graph)) > 10
    ragged, padded = opened(graph), opened(plain)
    assert ragged.describe() == {**padded.describe(), "layout": "ragged"}
    inputs = random_batch(model, 6, 12).inputs()
    real = slice(None) if model.encoder.pooled else inputs["attention_mask"] != 0
    wanted = run(EncoderModule(model), inputs)[real]
    assert np.abs(ragged.run(inputs)[real] - wanted).max() < 0.5 * max(1, np.abs(wanted).max())


@pytest.mark.parametrize("shape", ["dense", "uneven", "early", "mean", "tokens", "late mux"])
def test_the_ranges_of_int8_are_those_of_real_tokens(shape: str) -> None:
    """A padding token with a huge embedding spoils the padded graph's ranges only."""
    model = shaped("distilbert", shape, hidden=64)
    word = model.weights["embeddings.word.weight"].clone()
    word[model.encoder.pad_id, :9] = 200
    huge = replace(model, weights={**model.weights, "embeddings.word.weight": word})
    inputs = random_batch(model, 6, 12).inputs()
    real = slice(None) if model.encoder.pooled else inputs["attention_mask"] != 0
    moved = []
    for on in (False, True):
        a, b = (opened(lower(build(x, ragged=on))).run(inputs)[real] for x in (model, huge))
        moved.append(float(np.abs(a - b).max()))
    assert moved[0] > 0.01
    assert moved[1] == 0


def test_the_graph_says_so_and_runs_in_plain_onnx_runtime(tmp_path: Path) -> None:
    import onnxruntime

    model = shaped("bert", "uneven")
    notes = Onnx(ragged="on").emit(model, make_context(model), tmp_path).notes
    assert (notes["kept"], notes["layout"]) == ("ragged", "ragged")
    assert list(notes["parity"]) == ["ragged"]
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    assert session.get_modelmeta().custom_metadata_map[LAYOUT] == "ragged"
    inputs = random_batch(model, 5, 11, seed=3).inputs()
    assert [x.name for x in session.get_inputs()] == list(inputs)
    (found,) = session.run(None, inputs)
    np.testing.assert_allclose(found, run(EncoderModule(model), inputs), atol=1e-5)
    proto = onnx.load(tmp_path / "model.onnx")
    assert {x.domain for x in proto.graph.node} == {""}
    again = build(model, ragged=True).SerializeToString(deterministic=True)
    assert (tmp_path / "model.onnx").read_bytes() == again
    assert LAYOUT not in {x.key for x in build(model).metadata_props}


def timed_as(ms: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times by variant in place of the clock; the list tells what was timed."""
    asked: list[str] = []
    real = fusion_choice.time_graphs

    def time_graphs(graphs: Any, workload: Any, cores: Any) -> Any:
        del workload, cores
        asked.extend(x.fusion for x in graphs)
        return {x.fusion: Timing((ms[x.fusion],) * 7) for x in graphs}

    assert real is not time_graphs
    for module in ("prumux.export.onnx", "prumux.export.runtime.fusion_choice"):
        monkeypatch.setattr(f"{module}.time_graphs", time_graphs)
    return asked


@pytest.mark.parametrize(
    ("ms", "kept"),
    [
        ({"none": 10, "basic": 9, "all": 8, "ragged": 7.9}, "all"),
        ({"none": 10, "basic": 9, "all": 8, "ragged": 7}, "ragged"),
        ({"none": 10, "basic": 11, "all": 12, "ragged": 9.9}, "none"),
        ({"none": 10, "basic": 11, "all": 12, "ragged": 5}, "ragged"),
    ],
)
def test_auto_keeps_the_faster_of_the_fused_and_the_ragged(
    ms: dict[str, float], kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed_as(ms, monkeypatch)
    model = shaped("bert", "dense")
    ctx = make_context(model, arrivals="mixed")
    notes = Onnx().emit(model, ctx, tmp_path).notes
    assert asked == ["none", "basic", "all", "ragged"]
    assert notes["kept"] == kept
    layout = "ragged" if kept == "ragged" else "padded"
    assert (notes["layout"], notes["workload_ms"]) == (layout, ms)
    assert str(Onnx().tuned(model, ctx).ragged) == ("on" if kept == "ragged" else "off")


@pytest.mark.parametrize("ragged_ms", [7.0, 9.9])
def test_int8_is_timed_in_both_layouts_once_a_run(
    ragged_ms: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed_as({"none": 10, "ragged": ragged_ms}, monkeypatch)
    model = shaped("bert", "uneven", hidden=64)
    ctx = make_context(model, arrivals="mixed", store=Store())
    tuned = Onnx(precision="int8", keep=("layers.0.ffn.up",)).tuned(model, ctx)
    assert asked == ["none", "ragged"]
    wanted = "on" if ragged_ms < 9 else "off"
    assert str(tuned) == f'onnx{{precision=int8 keep="layers.0.ffn.up" ragged={wanted}}}'
    assert parse_target(str(tuned)) == tuned
    asked.clear()
    emitted = tuned.emit(model, ctx, tmp_path / "a")
    drafted = tuned.draft().emit(model, ctx, tmp_path / "b")
    assert asked == []
    assert emitted.notes["layout"] == ("ragged" if wanted == "on" else "padded")
    assert drafted.files == ("model.onnx",)
    a, b = ((tmp_path / x / "model.onnx").read_bytes() for x in "ab")
    assert a == b, "candidates are scored as they are shipped"


def test_sorted_rows_and_rows_of_one_length_are_not_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = timed_as({"none": 10, "basic": 11, "all": 12}, monkeypatch)
    model = shaped("bert", "dense")
    padded = random_batch(model)
    full = replace(padded, attention_mask=np.ones_like(padded.attention_mask))
    for ctx in (make_context(model, padded), make_context(model, full, arrivals="mixed")):
        assert Onnx().emit(model, ctx, tmp_path).notes["layout"] == "padded"
        assert Onnx().tuned(model, ctx) == Onnx()
    assert "ragged" not in asked


def test_the_text_form() -> None:
    assert str(Onnx(ragged="on")) == "onnx{ragged=on}"
    assert parse_target("onnx{ragged=off}") == Onnx(ragged="off")
    padded, ragged = Onnx(fusion="all", precision="fp32").layouts()
    assert str(padded) == "onnx{fusion=all precision=fp32 ragged=off}"
    assert str(ragged) == 'onnx{fusion="none" precision=fp32 ragged=on}'
    with pytest.raises(SpecError, match="ragged=on takes fusion=none, not all"):
        parse_target("onnx{ragged=on fusion=all}")
    with pytest.raises(SpecError, match="ragged"):
        parse_target("onnx{ragged=yes}")
