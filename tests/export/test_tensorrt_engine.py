"""Building and running engines: with TensorRT where it is, and with a stand-in everywhere."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from prumux.export.tensorrt import TensorRt
from prumux.export.trt import build as trt_build
from prumux.export.trt import engine as trt_engine
from prumux.export.trt import library as trt_library
from prumux.export.trt.build import BuildOptions, build_plan
from prumux.export.trt.engine import open_plan
from prumux.optimizer.base.errors import (
    GateError,
    MissingError,
    ModelError,
    PrumuxError,
    UsageError,
)
from prumux.optimizer.base.store import Store
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from tests.helpers import fake_tensorrt
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model

STAND_IN = "stand-in"
REAL = pytest.param("TensorRT", marks=pytest.mark.tensorrt)


@pytest.fixture(params=[STAND_IN, REAL])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What builds and runs engines."""
    if request.param == STAND_IN:
        stand_in(monkeypatch)
    else:
        try:
            trt_library.CLASSIC.check_run()
        except MissingError as error:
            pytest.skip(str(error).splitlines()[0])
    return str(request.param)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    stream = SimpleNamespace(cuda_stream=1, synchronize=lambda: None)
    patch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    patch.setattr(trt_engine, "DEVICE", "cpu")
    patch.setattr("torch.cuda.is_available", lambda: True)
    patch.setattr("torch.cuda.get_device_name", lambda: "no GPU")
    patch.setattr("torch.cuda.get_device_capability", lambda: (0, 0))
    patch.setattr("torch.cuda.Stream", lambda: stream)
    patch.setattr("torch.cuda.stream", lambda stream: nullcontext())


def shaped(shape: str) -> Model:
    heads, ffn = ((4, 4), (64, 64)) if shape == "dense" else ((3, 0, 4), (50, 7, 0))
    kind: Any = "token-classification" if shape == "tokens" else "text-classification"
    family: Any = "roberta" if shape == "mux" else "bert"
    model = random_model(family, heads=heads, ffn=ffn, labels=3, task=kind)
    return multiplexed(model, n=3, at=1) if shape == "mux" else model


def emitted(model: Model, folder: Path, precision: Any = "fp16", **options: Any) -> Any:
    batches = [random_batch(model, 6, length, seed=length) for length in (5, 12)]
    ctx = make_context(model, *batches, cache=Store(folder / "cache"))
    return TensorRt(precision, **options).emit(model, ctx, folder)


def build(graph: Path, names: Sequence[str], recipe: BuildOptions) -> Any:
    plan = graph.with_name("other.plan")
    return build_plan(
        graph, plan, names, (), recipe, flavor=trt_library.CLASSIC, timings=graph.parent
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("shape", ["dense", "uneven", "tokens", "mux"])
def test_an_engine_gives_the_answers(
    machine: str, shape: str, precision: str, tmp_path: Path
) -> None:
    if machine == STAND_IN and precision == "bf16":
        pytest.skip("ONNX Runtime's CPU cannot run it")
    model = shaped(shape)
    done = emitted(model, tmp_path, precision)
    assert set(done.files) == {"model.onnx", "tensorrt.sh", "model.plan", "model.plan.json"}
    assert all((tmp_path / x).exists() for x in done.files)
    low = "fp16" if precision == "int8" else precision
    assert done.notes["types"][low] > 0
    assert ("int8" in done.notes["types"]) == (precision == "int8")
    assert done.notes["parity"][precision] < done.notes["limit"]
    engine, module = TensorRt().engine(tmp_path, 1), EncoderModule(model)
    assert isinstance(engine, trt_engine.TrtEngine)
    assert engine.slots == model.encoder.slots
    for rows, length in ((1, 1), (6, 12), (2, 30), (20, 3), (7, 38)):
        inputs = random_batch(model, rows, length, seed=rows).inputs()
        found, reference = engine.run(inputs), run(module, inputs)
        assert found.shape == reference.shape
        assert found.dtype == np.float32
        real = inputs["attention_mask"] != 0 if shape == "tokens" else slice(None)
        limit = TensorRt(precision).limit([reference])  # type: ignore[arg-type]
        assert np.abs(found - reference)[real].max() < limit


def test_what_lies_beside_a_plan(machine: str, tmp_path: Path) -> None:
    model = shaped("mux")
    emitted(model, tmp_path, workspace_mib=1024)
    facts = json.loads((tmp_path / "model.plan.json").read_text())
    assert facts["slots"] == 3
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert facts["profiles"][0] == {"rows": [3, 6, 6], "tokens": [1, 16, 38]}
    assert facts["versions"]["tensorrt"] == trt_library.CLASSIC.library().__version__
    assert facts["device"] == trt_library.gpu()
    assert len(facts["graph_sha256"]) == len(facts["plan_sha256"]) == 64
    engine = open_plan(tmp_path / "model.plan")
    assert dict(engine.describe())["precision"] == "fp16"
    assert dict(engine.describe())["engine"] == "tensorrt"
    (tmp_path / "model.plan.json").unlink()
    alone = open_plan(tmp_path / "model.plan")  # as trtexec leaves it
    assert alone.slots == 3
    inputs = random_batch(model, 4, 9).inputs()
    np.testing.assert_array_equal(alone.run(inputs), engine.run(inputs))


def test_timings_are_kept(machine: str, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stat().st_size > 0
    emitted(model, tmp_path)
    for bad in (b"of another version", b"damaged"):
        kept.write_bytes(bad)
        emitted(model, tmp_path)
        assert kept.read_bytes() != bad


def test_wrong_inputs(machine: str, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path)
    engine = open_plan(tmp_path / "model.plan")
    ids = np.ones((2, 41), np.int64)
    with pytest.raises(UsageError, match="takes input_ids, attention_mask, token_type_ids; g"):
        engine.run({"input_ids": ids})
    long = dict.fromkeys(engine.names, ids)
    with pytest.raises(UsageError, match=r"inputs of 2 x 41 fit no profile.*up to 40 tokens"):
        engine.run(long)


def test_a_damaged_plan(machine: str, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path)
    plan = tmp_path / "model.plan"
    plan.write_bytes(plan.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"cannot be loaded by TensorRT .* on ") as caught:
        open_plan(plan)
    assert "build it again here" in str(caught.value)
    plan.unlink()
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        open_plan(plan)


def test_a_graph_that_the_parser_refuses(machine: str, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path)
    proto = onnx.load(tmp_path / "model.onnx")
    proto.graph.node[0].domain = proto.graph.node[0].op_type = "NoSuchThing"
    proto.opset_import.append(onnx.helper.make_opsetid("NoSuchThing", 1))
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(UsageError, match="refuses the graph: NoSuchThing"):
        build(tmp_path / "odd.onnx", (), BuildOptions("fp16", False))


def test_other_types_than_asked_are_refused(machine: str, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path, "fp32")
    engine = open_plan(tmp_path / "model.plan")
    for recipe in (BuildOptions("fp16", False), BuildOptions("fp32", True)):
        with pytest.raises(GateError, match="asked for"):
            build(tmp_path / "model.onnx", engine.names, recipe)


def test_many_threads_get_their_own_answers(machine: str, tmp_path: Path) -> None:
    model = shaped("uneven")
    emitted(model, tmp_path)
    engine = open_plan(tmp_path / "model.plan")
    asked = [random_batch(model, 1 + i % 5, 3 + i, seed=i).inputs() for i in range(16)]
    alone = [engine.run(x) for x in asked]
    found: list[Any] = [None] * len(asked)

    def ask(i: int) -> None:
        found[i] = engine.run(asked[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(alone, found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_what_fails_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the stand-in can be made to fail."""
    stand_in(monkeypatch)
    model = shaped("dense")
    with pytest.raises(PrumuxError, match="could not build") as caught:
        emitted(model, tmp_path, opt_level=5)
    assert caught.value.exit_code == 1
    emitted(model, tmp_path)
    engine = open_plan(tmp_path / "model.plan")
    ids = np.full((1, 4), -1)
    with pytest.raises(PrumuxError, match="failed on inputs of 1 x 4"):
        engine.run(dict.fromkeys(engine.names, ids))
    monkeypatch.setattr(trt_build, "check_network", lambda *rest: None)
    emitted(model, tmp_path, "fp32")
    with pytest.raises(GateError, match="fp16 was asked for; the engine's layers hold"):
        build(tmp_path / "model.onnx", engine.names, BuildOptions("fp16", False))
    # The build took long: what it gave is there for whoever looks into it.
    assert (tmp_path / "other.plan").stat().st_size > 0
    assert list(tmp_path.glob("tensorrt-*.timings"))


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp32"])
def test_what_cannot_be_seen_is_said(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(fake_tensorrt, "FUSE", True)
    done = emitted(shaped("dense"), tmp_path, precision)
    assert done.notes["types"] == {"fp32": 1, "int64": 3}
    assert done.notes["parity"][precision] < done.notes["limit"]
    facts = json.loads((tmp_path / "model.plan.json").read_text())
    if precision == "fp32":  # as asked, whatever is inside
        assert "types_unseen" not in done.notes
        assert "types_unseen" not in facts
        return
    asked = "int8 with fp16" if precision == "int8" else precision
    assert (
        done.notes["types_unseen"]
        == facts["types_unseen"]
        == (
            f"{asked} was asked for; the engine's layers hold values of these types: 1 fp32, "
            "3 int64; 1 layers do not tell what they hold; the parsed network was right"
        )
    )


def test_what_a_run_is_refused_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    model = shaped("dense")
    emitted(model, tmp_path)
    engine = open_plan(tmp_path / "model.plan")
    inputs = random_batch(model, 6, 12).inputs()
    with monkeypatch.context() as patch:
        patch.setattr(trt_engine, "nearest", lambda profiles, *rest: len(profiles) - 1)
        with pytest.raises(PrumuxError, match=r"'input_ids' of 6 x 12 in profile 1") as caught:
            engine.run(inputs)
        assert "takes 1..1 rows of 1..40 tokens" in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr("torch.Tensor.data_ptr", lambda tensor: fake_tensorrt.NOWHERE)
        with pytest.raises(PrumuxError, match="refuses the buffer of 'input_ids', 6 x 12"):
            engine.run(inputs)
    assert engine.run(inputs).shape == (6, 3)


@pytest.mark.tensorrt
def test_the_script_builds_what_we_would(tmp_path: Path) -> None:
    if shutil.which("trtexec") is None:
        pytest.skip("no trtexec on the path")
    trt_library.CLASSIC.check_run()
    model = shaped("mux")
    emitted(model, tmp_path)
    inputs = random_batch(model, 6, 12).inputs()
    ours = open_plan(tmp_path / "model.plan").run(inputs)
    (tmp_path / "model.plan").unlink()
    subprocess.run(["sh", str(tmp_path / "tensorrt.sh")], check=True, capture_output=True)
    theirs = open_plan(tmp_path / "model.plan").run(inputs)
    limit = TensorRt().limit([ours])
    np.testing.assert_allclose(theirs, ours, atol=limit)
    assert torch.cuda.is_available()
