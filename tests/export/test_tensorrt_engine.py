"""Running engines: with either TensorRT where a GPU is, and with a stand-in everywhere.

The stand-in runs what TensorRT for RTX built; what only builds is in test_tensorrt_rtx.py.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from prumux.export.graph.graph import input_names
from prumux.export.tensorrt import TensorRt
from prumux.export.trt import build as trt_build
from prumux.export.trt import engine as trt_engine
from prumux.export.trt import library as trt_library
from prumux.export.trt.build import BuildOptions, build_plan
from prumux.export.trt.engine import open_plan
from prumux.export.trt.library import RTX, Flavor
from prumux.export.trt.profiles import profiles
from prumux.optimizer.base.errors import (
    GateError,
    MissingError,
    ModelError,
    PrumuxError,
    UsageError,
)
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from tests.helpers import fake_tensorrt
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model
from tests.helpers.fake_tensorrt import stand_in

STAND_IN = "stand-in"
REAL = [pytest.param(x, marks=pytest.mark.tensorrt, id=x.title) for x in trt_library.FLAVORS]


@pytest.fixture(params=[STAND_IN, *REAL])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Flavor:
    """What builds and runs engines."""
    if request.param == STAND_IN:
        stand_in(monkeypatch)
        return RTX
    return runs_here(request.param)


def runs_here(flavor: Flavor) -> Flavor:
    """The flavour; skips the test, with a reason, where its engines do not run."""
    try:
        flavor.check_run()
    except MissingError as error:
        pytest.skip(str(error).splitlines()[0])
    return flavor


def shaped(shape: str) -> Model:
    heads, ffn = ((4, 4), (64, 64)) if shape == "dense" else ((3, 0, 4), (50, 7, 0))
    kind: Any = "token-classification" if shape == "tokens" else "text-classification"
    family: Any = "roberta" if shape == "mux" else "bert"
    model = random_model(family, heads=heads, ffn=ffn, labels=3, task=kind)
    return multiplexed(model, n=3, at=1) if shape == "mux" else model


def workload(model: Model) -> list[Batch]:
    return [random_batch(model, 6, length, seed=length) for length in (5, 12)]


def emitted(
    model: Model, folder: Path, precision: Any = "fp16", flavor: Flavor = RTX, **options: Any
) -> Any:
    ctx = make_context(model, *workload(model), cache=Store(folder / "cache"))
    target = TensorRt(precision, flavor=flavor.name, **options)  # type: ignore[arg-type]
    return target.emit(model, ctx, folder)


def build(model: Model, graph: Path, options: BuildOptions, flavor: Flavor = RTX) -> Any:
    plan, names = graph.with_name("other.plan"), input_names(model.encoder)
    shapes = profiles(model.encoder, workload(model))
    return build_plan(graph, plan, names, shapes, options, flavor=flavor, timings=graph.parent)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("shape", ["dense", "uneven", "tokens", "mux"])
def test_an_engine_gives_the_answers(
    machine: Flavor, shape: str, precision: str, tmp_path: Path
) -> None:
    model = shaped(shape)
    done = emitted(model, tmp_path, precision, machine)
    plan = machine.plan
    assert set(done.files) == {"model.onnx", "tensorrt.sh", plan, f"{plan}.json"}
    assert all((tmp_path / x).exists() for x in done.files)
    low = "fp16" if precision == "int8" else precision
    assert done.notes["types"][low] > 0
    assert ("int8" in done.notes["types"]) == (precision == "int8")
    assert done.notes["parity"][precision] < done.notes["limit"]
    engine, module = open_plan(tmp_path / plan), EncoderModule(model)
    assert engine.slots == model.encoder.slots
    for rows, length in ((1, 1), (6, 12), (2, 30), (20, 3), (7, 38)):
        inputs = random_batch(model, rows, length, seed=rows).inputs()
        found, reference = engine.run(inputs), run(module, inputs)
        assert found.shape == reference.shape
        assert found.dtype == np.float32
        real = inputs["attention_mask"] != 0 if shape == "tokens" else slice(None)
        limit = TensorRt(precision).limit([reference])  # type: ignore[arg-type]
        assert np.abs(found - reference)[real].max() < limit


def test_what_lies_beside_a_plan(machine: Flavor, tmp_path: Path) -> None:
    model = shaped("mux")
    emitted(model, tmp_path, flavor=machine, workspace_mib=1024)
    plan = tmp_path / machine.plan
    facts = json.loads((tmp_path / f"{plan.name}.json").read_text())
    assert facts["slots"] == 3
    assert facts["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
    assert facts["profiles"][0] == {"rows": [3, 6, 6], "tokens": [1, 16, 38]}
    assert facts["versions"]["tensorrt"] == machine.library().__version__
    assert facts["device"] == trt_library.gpu()
    assert len(facts["graph_sha256"]) == len(facts["plan_sha256"]) == 64
    engine = open_plan(plan)
    assert dict(engine.describe())["precision"] == "fp16"
    assert dict(engine.describe())["engine"] == machine.engine
    (tmp_path / f"{plan.name}.json").unlink()
    alone = open_plan(plan)  # as trtexec leaves it
    assert alone.slots == 3
    inputs = random_batch(model, 4, 9).inputs()
    np.testing.assert_array_equal(alone.run(inputs), engine.run(inputs))


class TimingConfig:
    """The part of TensorRT's config that keeps timings; TensorRT for RTX has none."""

    def __init__(self) -> None:
        self.cache: bytes | None = None

    def create_timing_cache(self, known: bytes) -> bytes | None:
        return None if known == b"damaged" else known

    def set_timing_cache(self, cache: bytes, ignore: bool) -> bool:
        if cache not in (b"", b"timings"):
            return False
        self.cache = cache
        return True

    def get_timing_cache(self) -> Any:
        assert self.cache is not None
        return SimpleNamespace(serialize=lambda: b"timings")


@pytest.mark.parametrize("before", [b"", b"timings", b"of another version", b"damaged"])
def test_timings_are_used_if_they_fit(before: bytes) -> None:
    config = TimingConfig()
    trt_build._use_timings(config, before)
    assert config.cache == (b"timings" if before == b"timings" else b"")


@pytest.mark.tensorrt
def test_real_timings_are_kept(tmp_path: Path) -> None:
    runs_here(trt_library.CLASSIC)
    model = shaped("dense")
    emitted(model, tmp_path, flavor=trt_library.CLASSIC)
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.stat().st_size > 0
    emitted(model, tmp_path, flavor=trt_library.CLASSIC)
    for bad in (b"of another version", b"damaged"):
        kept.write_bytes(bad)
        emitted(model, tmp_path, flavor=trt_library.CLASSIC)
        assert kept.read_bytes() != bad


def test_finished_kernels_are_kept_beside_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    model = shaped("dense")
    emitted(model, tmp_path)
    kept = tmp_path / "model.rtx.plan.cache"
    assert kept.read_bytes() == b"kernels 0"  # of the check against the torch module
    one = random_batch(model, 1, 9).inputs()
    open_plan(tmp_path / "model.rtx.plan").run(one)
    assert kept.read_bytes() == b"kernels 0 1"
    kept.write_bytes(b"of another GPU")
    open_plan(tmp_path / "model.rtx.plan").run(one)
    assert kept.read_bytes() == b"kernels 1"

    def full(*rest: Any) -> None:
        raise OSError("read-only file system")

    kept.unlink()
    monkeypatch.setattr("prumux.export.trt.rtx.write_atomic", full)
    open_plan(tmp_path / "model.rtx.plan").run(one)
    assert not kept.exists()


def test_wrong_inputs(machine: Flavor, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path, flavor=machine)
    engine = open_plan(tmp_path / machine.plan)
    ids = np.ones((2, 41), np.int64)
    with pytest.raises(UsageError, match="takes input_ids, attention_mask, token_type_ids; g"):
        engine.run({"input_ids": ids})
    long = dict.fromkeys(engine.names, ids)
    with pytest.raises(UsageError, match=r"inputs of 2 x 41 fit no profile.*up to 40 tokens"):
        engine.run(long)


def test_a_damaged_plan(machine: Flavor, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path, flavor=machine)
    plan = tmp_path / machine.plan
    plan.write_bytes(plan.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"cannot be loaded by TensorRT .* on ") as caught:
        open_plan(plan)
    assert "build it again here" in str(caught.value)
    plan.unlink()
    with pytest.raises(ModelError, match="cannot be read: No such file"):
        open_plan(plan)


def test_a_graph_that_the_parser_refuses(machine: Flavor, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path, flavor=machine)
    proto = onnx.load(tmp_path / "model.onnx")
    proto.graph.node[0].domain = proto.graph.node[0].op_type = "NoSuchThing"
    proto.opset_import.append(onnx.helper.make_opsetid("NoSuchThing", 1))
    onnx.save(proto, tmp_path / "odd.onnx")
    with pytest.raises(UsageError, match="refuses the graph: NoSuchThing"):
        build(model, tmp_path / "odd.onnx", BuildOptions("fp16", False), machine)


def test_other_types_than_asked_are_refused(machine: Flavor, tmp_path: Path) -> None:
    model = shaped("dense")
    emitted(model, tmp_path, "fp32", machine)
    for recipe in (BuildOptions("fp16", False), BuildOptions("fp32", True)):
        with pytest.raises(GateError, match="asked for"):
            build(model, tmp_path / "model.onnx", recipe, machine)


def test_many_threads_get_their_own_answers(machine: Flavor, tmp_path: Path) -> None:
    model = shaped("uneven")
    emitted(model, tmp_path, flavor=machine)
    engine = open_plan(tmp_path / machine.plan)
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
    emitted(model, tmp_path)
    engine = open_plan(tmp_path / "model.rtx.plan")
    ids = np.full((1, 4), -1)
    with pytest.raises(PrumuxError, match="failed on inputs of 1 x 4"):
        engine.run(dict.fromkeys(engine.names, ids))
    monkeypatch.setattr(trt_build, "check_network", lambda *rest: None)
    emitted(model, tmp_path, "fp32")
    with pytest.raises(GateError, match="fp16 was asked for; the engine's layers hold"):
        build(model, tmp_path / "model.onnx", BuildOptions("fp16", False))
    # The build took long: what it gave is there for whoever looks into it.
    assert (tmp_path / "other.plan").stat().st_size > 0


@pytest.mark.parametrize("precision", ["fp16", "int8", "fp32"])
def test_what_cannot_be_seen_is_said(
    precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    monkeypatch.setattr(fake_tensorrt, "FUSE", True)
    done = emitted(shaped("dense"), tmp_path, precision)
    assert done.notes["types"] == {"fp32": 1, "int64": 3}
    assert done.notes["parity"][precision] < done.notes["limit"]
    facts = json.loads((tmp_path / "model.rtx.plan.json").read_text())
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
    engine = open_plan(tmp_path / "model.rtx.plan")
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
    runs_here(trt_library.CLASSIC)
    model = shaped("mux")
    emitted(model, tmp_path, flavor=trt_library.CLASSIC)
    inputs = random_batch(model, 6, 12).inputs()
    ours = open_plan(tmp_path / "model.plan").run(inputs)
    (tmp_path / "model.plan").unlink()
    subprocess.run(["sh", str(tmp_path / "tensorrt.sh")], check=True, capture_output=True)
    theirs = open_plan(tmp_path / "model.plan").run(inputs)
    limit = TensorRt().limit([ours])
    np.testing.assert_allclose(theirs, ours, atol=limit)
    assert torch.cuda.is_available()
