"""int8 graphs: what is lowered, what is not, and that they answer alike."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.numpy_helper
import pytest

from prumux.export.graph.fusion import quiet
from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import verify
from prumux.export.graph.int8 import LEAST_UNITS, lower, lowered_names, worth_lowering
from prumux.export.onnx import Onnx
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base import environment
from prumux.optimizer.base.errors import SpecError
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.language import parse_one
from tests.helpers.factory import (
    Family,
    Kind,
    make_context,
    multiplexed,
    random_batch,
    random_model,
)

WIDE: dict[str, Any] = {"hidden": 64, "head_dim": 8}


def logits(proto: onnx.ModelProto, model: Model) -> np.ndarray:
    inputs = random_batch(model, rows=8).inputs()
    return OrtEngine(proto.SerializeToString(), threads=1).run(inputs)


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_lowered_graphs_answer_alike(family: Family, task: Kind) -> None:
    model = random_model(family, (8, 8), (128, 64), task=task, **WIDE)
    proto = build(model)
    made = lower(proto)
    verify(made)
    assert lowered_names(made) == worth_lowering(proto)
    plain, found = logits(proto, model), logits(made, model)
    assert plain.shape == found.shape
    assert 0 < np.abs(plain - found).mean() < 0.1 * np.abs(plain).mean()


def test_uneven_narrow_and_mixed_models() -> None:
    uneven = random_model("bert", (8, 0, 10, 8), (64, 128, 0, 100), **WIDE)
    for model in (
        uneven,
        replace(uneven, encoder=replace(uneven.encoder, pool_early=True)),
        multiplexed(uneven, 2),
        multiplexed(uneven, 2, at=2),
    ):
        proto = build(model)
        made = lower(proto)
        assert lowered_names(made)
        plain, found = logits(proto, model), logits(made, model)
        assert np.abs(plain - found).mean() < 0.1 * np.abs(plain).mean()


def test_small_products_and_those_that_are_kept_stay() -> None:
    model = random_model("bert", (8, 1), (128, LEAST_UNITS - 1), **WIDE)
    names = worth_lowering(build(model))
    assert "layers.0.ffn.up.matmul" in names
    assert "layers.1.ffn.up.matmul" not in names, "too few units"
    assert "layers.1.attention.query.matmul" not in names, "one head of 8"
    assert not [x for x in names if "scores" in x or "context" in x], "no weights"
    assert not [x for x in names if "head.output" in x], "two labels"
    made = lower(build(model), keep=("layers.0.ffn.up",))
    assert set(lowered_names(made)) == set(names) - {"layers.0.ffn.up.matmul"}


@pytest.mark.parametrize(("saturates", "most"), [(True, 64), (False, 127)])
def test_where_sums_overflow_weights_have_seven_bits(
    saturates: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prumux.export.graph.int8.int8_saturates", lambda: saturates)
    made = lower(build(random_model("bert", (8, 8), (128, 64), **WIDE)))
    weights = [x for x in made.graph.initializer if x.data_type == onnx.TensorProto.INT8]
    sizes = [np.abs(onnx.numpy_helper.to_array(x).astype(int)).max() for x in weights]
    assert max(sizes) in (most - 1, most)


@pytest.mark.parametrize(
    ("isa", "saturates"),
    [
        ("avx2", True),
        ("avx2 avx512f", True),
        ("avx2 avx512f avx512_vnni", False),
        ("avx2 avx_vnni", False),
        ("asimddp", False),
        ("", False),
    ],
)
def test_which_processors_overflow(
    isa: str, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "device", lambda: {"cpu_isa": isa})
    assert environment.int8_saturates() is saturates


def test_same_model_same_bytes() -> None:
    proto = build(random_model("bert", (8, 8), (128, 64), **WIDE))
    first, second = (lower(proto).SerializeToString(deterministic=True) for _ in range(2))
    assert first == second
    assert len(first) < 0.6 * len(proto.SerializeToString())


def test_the_target_emits_int8_and_says_how_far_it_is_off(tmp_path: Path) -> None:
    model = random_model("bert", (8, 8), (128, 64), **WIDE)
    target = parse_one_target('onnx{precision=int8 keep="layers.1.ffn.down"}')
    assert not target.exact
    emitted = target.emit(model, make_context(model), tmp_path)
    assert emitted.notes["parity"]["none"] < 1e-4 < emitted.notes["parity"]["int8"]
    names = lowered_names(onnx.load(tmp_path / "model.onnx"))
    assert len(names) == emitted.notes["lowered"]
    assert "layers.1.ffn.down.matmul" not in names
    assert target.engine(tmp_path, 1).describe()["precision"] == "int8"
    draft = target.draft().emit(model, make_context(model), tmp_path / "draft")
    drafted = (tmp_path / "draft" / draft.files[0]).read_bytes()
    assert drafted == (tmp_path / "model.onnx").read_bytes()


def parse_one_target(text: str) -> Onnx:
    made = Onnx.from_node(parse_one(text))
    assert isinstance(made, Onnx)
    return made


def test_auto_stands_for_what_the_model_is_large_enough_for() -> None:
    small, large = random_model(hidden=48).encoder, random_model(**WIDE).encoder
    auto = parse_one_target("onnx")
    assert [str(x) for x in auto.variants(small)] == ["onnx{precision=fp32}"]
    exact, lossy = auto.variants(large)
    assert exact.exact
    assert exact == auto.baseline()
    assert not lossy.exact
    assert parse_one_target(str(lossy)) == lossy
    assert lossy.variants(large) == (lossy,), "what was asked for is not asked again"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('onnx{keep="layers.0.ffn.up"}', "keep is for precision=int8"),
        ("onnx{precision=int8 fusion=all}", "fused attention is slower in int8"),
        ("onnx{precision=int4}", "int4"),
    ],
)
def test_options_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        parse_one_target(text)


@pytest.mark.parametrize("saturates", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_graph_is_the_one_of_onnx_runtimes_own_tool(
    saturates: bool, mixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    monkeypatch.setattr("prumux.export.graph.int8.int8_saturates", lambda: saturates)
    model = random_model("bert", (8, 0, 8), (64, 128, 100), **WIDE)
    proto = build(multiplexed(model, 2) if mixed else model)
    zero = next(x for x in proto.graph.initializer if x.name.endswith("1.ffn.up.weight"))
    values = onnx.numpy_helper.to_array(zero).copy()
    values[:, 3] = 0  # a column without a range
    zero.CopyFrom(onnx.numpy_helper.from_array(values, zero.name))
    onnx.save(proto, tmp_path / "float.onnx")
    with quiet():
        quantize_dynamic(
            tmp_path / "float.onnx",
            tmp_path / "int8.onnx",
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=saturates,
            nodes_to_quantize=worth_lowering(proto),
        )
    theirs, ours = onnx.load(tmp_path / "int8.onnx"), lower(proto)
    assert by_name(ours) == by_name(theirs)
    assert held(ours) == held(theirs)


def held(proto: onnx.ModelProto) -> dict[str, Any]:
    """Initializers by name: type, shape and bytes."""
    return {
        x.name: (x.data_type, tuple(x.dims), onnx.numpy_helper.to_array(x).tobytes())
        for x in proto.graph.initializer
    }


def by_name(proto: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Nodes by name: the tool sorts them, ours stay where the products were."""
    return {x.name: x for x in proto.graph.node}
