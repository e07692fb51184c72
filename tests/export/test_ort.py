"""ONNX Runtime sessions: what they are fed, what they tell, what they say when they fail."""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import save
from prumux.export.onnx import Onnx
from prumux.export.runtime.ort import CPU, CUDA, OrtEngine, gpu_providers
from prumux.optimizer.base.errors import MissingError, ModelError, UsageError
from tests.helpers.factory import multiplexed, random_batch, random_model


def opened(proto: onnx.ModelProto) -> OrtEngine:
    return OrtEngine(proto.SerializeToString(), threads=1)


def test_what_an_engine_says_of_itself() -> None:
    found = opened(build(random_model(heads=(4,)))).describe()
    assert dict(found) == {
        "engine": "onnxruntime",
        "version": found["version"],
        "provider": "CPUExecutionProvider",
        "device": "cpu",
        "threads": "1",
        "precision": "fp32",
    }


def test_wrong_inputs_and_damaged_files(tmp_path: Path) -> None:
    model = random_model(heads=(4,))
    proto = build(model)
    inputs = random_batch(model).inputs()
    del inputs["token_type_ids"]
    with pytest.raises(
        UsageError, match="takes input_ids, attention_mask, token_type_ids; given"
    ):
        opened(proto).run(inputs)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString()[:5000])
    with pytest.raises(ModelError, match=r"model\.onnx' cannot be opened by ONNX Runtime"):
        Onnx().engine(tmp_path, 1)
    with pytest.raises(ModelError, match="missing/model"):
        Onnx().engine(tmp_path / "missing", 1)
    with pytest.raises(ModelError, match="the graph cannot be opened") as caught:
        OrtEngine(b"junk", 1)
    assert "file" not in str(caught.value)


def foreign(*names: str) -> onnx.ModelProto:
    """A graph as others make them: the sum of its inputs, as float32 [B, T]."""
    axes = ["rows", "tokens"]
    ids = [helper.make_tensor_value_info(x, TensorProto.INT64, axes) for x in names]
    total = [helper.make_node("Sum", [f"{x}.float" for x in names], ["y"])]
    casts = [
        helper.make_node("Cast", [x], [f"{x}.float"], to=TensorProto.FLOAT) for x in names
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, axes)
    graph = helper.make_graph([*casts, *total], "foreign", ids, [out])
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_graphs_of_others_are_fed_what_they_ask_for() -> None:
    inputs = random_batch(random_model(heads=(4,))).inputs()
    found = opened(foreign("input_ids")).run(inputs)
    np.testing.assert_array_equal(found, inputs["input_ids"])
    with pytest.raises(UsageError) as caught:
        opened(foreign("input_ids", "position_ids", "x")).run(inputs)
    assert "asks for position_ids, x; known are input_ids, attention_mask," in str(
        caught.value
    )


def test_onnx_runtime_prints_nothing_beside_our_message(
    capfd: pytest.CaptureFixture[str],
) -> None:
    model = multiplexed(random_model(heads=(4,)), n=2)
    odd = random_batch(model, rows=3).inputs()
    with pytest.raises(Exception, match="rows_must_be_a_multiple_of_2"):
        opened(build(model))._whole_groups(odd)
    assert capfd.readouterr().err == ""


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert gpu_providers() == (() if not torch.cuda.is_available() else (CUDA,))
    target = Onnx(device="cuda")
    assert target.providers == (CUDA,)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingError, match="finds no GPU that it can use") as caught:
        target.check()
    assert "or use onnx" in str(caught.value)
    # An ONNX Runtime that has CUDA falls back to the CPU where it finds none: not unnoticed.
    save(build(random_model(heads=(4,))), tmp_path)
    asked = []

    def session(graph: object, options: object, providers: list[tuple[str, object]]) -> object:
        asked.append(providers)
        return real(graph, options, providers=[CPU])

    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(MissingError, match=f"has {CUDA} and cannot use it"):
        target.engine(tmp_path, 1)
    assert asked == [[(CUDA, {"use_tf32": "0"}), (CPU, {})]]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert gpu_providers() == (CUDA,)
    target.check()


def test_precisions_of_a_gpu() -> None:
    encoder = random_model(hidden=128, heads=(4,)).encoder
    assert [str(x) for x in Onnx(device="cuda").variants(encoder)] == [
        "onnx{precision=fp32 device=cuda}", "onnx{precision=fp16 device=cuda}"
    ]  # fmt: skip
    with pytest.raises(ValueError, match="int8 is for device=cpu"):
        Onnx(device="cuda", precision="int8")
    with pytest.raises(MissingError, match=r"or on a GPU onnx\{.*device=cuda"):
        Onnx(precision="bf16").check()


def test_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = build(random_model(heads=(4,)))
    with pytest.raises(MissingError, match="has no NoSuchProvider, only") as caught:
        OrtEngine(proto.SerializeToString(), 1, ("NoSuchProvider",))
    assert "pip install 'prumux[cuda]'" in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingError, match=r"pip install 'prumux\[cpu\]'"):
        opened(proto)
