"""Cascades as two engines of TensorRT: the host defers rows between them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import prumux
from prumux.export.benchmark import verify
from prumux.export.graph.compose import compose
from prumux.export.graph.graph import build
from prumux.export.graph.rounding import rounding
from prumux.export.onnx import Onnx
from prumux.export.runtime.cascade_engine import CASCADE_FILE, CascadeEngine
from prumux.export.runtime.ort import OrtEngine
from prumux.export.tensorrt import TensorRt
from prumux.export.trt.engine import TrtEngine
from prumux.export.trt.library import gpu_here
from prumux.export.trt.stages import engine_stages
from prumux.optimizer.base.errors import GateError, MissingError, ModelError
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.cascade import module_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import run
from prumux.optimizer.tasks.prediction import Prediction
from tests.helpers.cascades import cascade_of
from tests.helpers.factory import (
    make_context,
    multiplexed,
    random_batch,
    random_model,
    tiny_tokenizer,
)
from tests.helpers.fake_tensorrt import stand_in
from tests.helpers.rtx import made, wrong_types
from tests.helpers.tensorrt_api import rtx_api

NONE, SOME, ALL = 0.0, 0.4, 3e38
PLAN = "model.rtx.plan"
FILES = ("model.onnx", PLAN, f"{PLAN}.json")
SHARES: dict[float, float] = {NONE: 0.0, SOME: 0.5, ALL: 1.0}
no_gpu = pytest.mark.skipif(gpu_here(), reason="a GPU is here: the engines answer")


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    rtx_api()  # skips, or fails, where it is not installed


def emitted(model: Model, folder: Path, precision: Any = "fp32", **options: Any) -> Any:
    """The files of a cascade, and its engine: the plans if they run here, else the graphs."""
    batches = [random_batch(model, 6, length, seed=length) for length in (5, 12)]
    target = TensorRt(precision, flavor="rtx", **options)
    done = target.emit(model, make_context(model, *batches), folder)
    return done, target.engine(folder, 1)


def typed(model: Model, folder: Path) -> Any:
    """The engine of a cascade's typed graphs. No plan is built."""
    target = TensorRt("fp32", flavor="rtx").draft()
    target.emit(model, make_context(model, random_batch(model, 6, 12)), folder)
    return target.engine(folder, 1)


def composed(model: Model, precision: Any = "fp32") -> OrtEngine:
    """The same cascade as one typed graph, rounded as the engines are."""
    assert model.second is not None
    first = replace(model, second=None)
    one, two = (
        rounding(build(x, precision=precision, portable=True))
        for x in (first, model.second.model)
    )
    return OrtEngine(compose(one, two, model.second).SerializeToString(), 1)


def with_rule(model: Model, **rule: float) -> Model:
    assert model.second is not None
    return replace(model, second=replace(model.second, **rule))  # type: ignore[arg-type]


@pytest.mark.parametrize("threshold", [NONE, SOME, ALL])
@pytest.mark.parametrize("machine", ["typed graphs", "stand-in"])
def test_two_engines_answer_as_the_composed_graph(
    machine: str, threshold: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cascade_of(threshold)
    if machine == "stand-in":
        stand_in(monkeypatch)
        done, engine = emitted(model, tmp_path)
        assert set(done.files) == {
            *("tensorrt.sh", CASCADE_FILE),
            *(f"{stage}/{x}" for stage in ("first", "second") for x in FILES),
        }
        assert all((tmp_path / x).exists() for x in done.files)
    else:
        engine = typed(model, tmp_path)
    assert isinstance(engine, CascadeEngine)
    one = engine._first
    assert isinstance(one, TrtEngine if machine == "stand-in" else OrtEngine)
    whole = composed(model)
    for rows, length in ((1, 1), (6, 12), (20, 3)):
        inputs = random_batch(model, rows, length, seed=rows).inputs()
        np.testing.assert_allclose(engine.run(inputs), whole.run(inputs), atol=1e-5)
        told = engine.deferred(inputs)
        np.testing.assert_array_equal(told, whole.deferred(inputs))
        if threshold != SOME:
            assert told.mean() == SHARES[threshold]


def test_exactly_one_row_is_deferred(tmp_path: Path) -> None:
    model = cascade_of(ALL)
    inputs = random_batch(model, rows=16).inputs()
    engine = typed(model, tmp_path)
    first = engine._first.run(inputs)
    margin = np.abs(first[:, 0] - first[:, 1])
    low = np.sort(margin)[:2].mean()
    one = typed(with_rule(model, threshold=float(np.float32(low))), tmp_path / "one")
    assert np.flatnonzero(one.deferred(inputs)).tolist() == [int(margin.argmin())]
    assert (one.run(inputs) != first).any(axis=1).sum() == 1
    alone = [one.run({k: v[i : i + 1] for k, v in inputs.items()}) for i in range(16)]
    np.testing.assert_allclose(np.concatenate(alone), one.run(inputs), atol=1e-4)


@pytest.mark.parametrize("threshold", [SOME, ALL])
def test_mixed_first_stages_and_bounded_shares(threshold: float, tmp_path: Path) -> None:
    first = multiplexed(random_model(heads=(4, 4), head_dim=12), 3)
    model = cascade_of(threshold, first=first, max_share=0.25)
    engine = typed(model, tmp_path)
    whole = composed(model)
    assert engine.slots == whole.slots == 3
    for rows in (1, 7, 12):
        inputs = random_batch(model, rows, seed=rows).inputs()
        np.testing.assert_allclose(engine.run(inputs), whole.run(inputs), atol=1e-5)
        np.testing.assert_array_equal(engine.deferred(inputs), whole.deferred(inputs))
    assert 0 < engine.deferred(inputs).sum() <= 3


CASES = [
    *(
        ("bert", "uneven", "int8"),
        ("roberta", "uneven", "fp16"),
        ("distilbert", "mixed", "bf16"),
    ),
    *(("modernbert", "uneven", "fp32"), ("albert", "dense", "fp16")),
]


@pytest.mark.parametrize(("family", "shape", "precision"), CASES)
def test_families_and_precisions_are_built(
    family: str, shape: str, precision: Any, tmp_path: Path
) -> None:
    first, second = (made(tmp_path / x, family, x) for x in (shape, "dense"))
    done, engine = emitted(cascade_of(SOME, first=first, second=second), tmp_path, precision)
    for stage, of in (("first", first), ("second", second)):
        place = tmp_path / stage
        assert (place / PLAN).stat().st_size > 1_000_000
        assert wrong_types(place / "model.onnx")[0] == []
        nodes = {x.op_type for x in onnx.load(place / "model.onnx").graph.node}
        assert ("QuantizeLinear" in nodes) == (precision == "int8")
        facts = json.loads((place / f"{PLAN}.json").read_text())
        assert (facts["precision"], facts["slots"]) == (precision, of.encoder.slots)
    for notes in (done.notes, done.notes["second"], done.notes["cascade"]):
        assert notes["parity"][precision] <= notes["limit"]
    found = engine.run(random_batch(first, 7, 9).inputs())
    assert found.shape == (7, first.encoder.labels)


def test_profiles_of_the_second_engine_take_one_to_all_rows() -> None:
    first = multiplexed(random_model(heads=(4,), head_dim=12), 3)
    model = cascade_of(SOME, first=first, share=0.4)
    stages = engine_stages(model, [random_batch(model, 6, 12)])
    one, two = ([x.rows for x in stage.profiles] for stage in stages)
    assert one == [(3, 6, 6), (3, 3, 3)]
    assert two == [(1, 3, 6), (1, 2, 3)]
    assert [x.place for x in stages] == ["first", "second"]


def test_the_script_builds_both_engines(tmp_path: Path) -> None:
    typed(cascade_of(SOME), tmp_path)
    fake = tmp_path / "bin" / "trtexec"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\necho "$1 $2"\n')
    fake.chmod(0o755)
    path = {"PATH": f"{fake.parent}:/usr/bin:/bin"}
    found = subprocess.run(
        ["sh", tmp_path / "tensorrt.sh"], env=path, text=True, capture_output=True, check=True
    )
    assert found.stdout.splitlines() == [
        f"--onnx={x}/model.onnx --saveEngine={x}/model.plan" for x in ("first", "second")
    ]


def test_a_wrong_second_engine_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each engine is checked alone, and both together."""
    real = TensorRt.engine

    def swapped(self: TensorRt, folder: Path, threads: int) -> Any:
        other = folder.with_name("first") if folder.name == "second" else folder
        return real(self, other, threads)

    monkeypatch.setattr(TensorRt, "engine", swapped)
    with pytest.raises(GateError, match=r"TensorRT \(fp32, second\) against the torch module"):
        emitted(cascade_of(SOME), tmp_path)

    def alone(self: TensorRt, folder: Path, threads: int) -> Any:
        whole = folder.name not in ("first", "second")
        return real(self, folder / "first" if whole else folder, threads)

    monkeypatch.setattr(TensorRt, "engine", alone)
    with pytest.raises(GateError, match=r"TensorRT \(fp32, cascade\) against the torch"):
        emitted(cascade_of(ALL), tmp_path)


def test_without_a_library_both_graphs_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    with pytest.raises(MissingError, match=r"first/model\.onnx, second/model\.onnx and tens"):
        emitted(cascade_of(SOME), tmp_path)
    assert {str(x.relative_to(tmp_path)) for x in tmp_path.rglob("*") if x.is_file()} == {
        *("cascade.json", "tensorrt.sh", "first/model.onnx", "second/model.onnx")
    }


def saved(model: Model, folder: Path, write: Any = typed) -> Path:
    model = replace(model, tokenizer=tiny_tokenizer())
    save_artifact(model, folder)
    write(model, folder)
    return folder


def built(model: Model, folder: Path) -> Any:
    return emitted(model, folder, "fp16")


def labels_of(folder: Path, texts: list[str], **options: Any) -> list[str | None]:
    found = prumux.load(folder, **options).predict(texts)
    return [x.label for x in found if isinstance(x, Prediction)]


TEXTS = ["good film", "bad play", "abc", "some longer text here"] * 4


@no_gpu
def test_a_folder_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = cascade_of(SOME)
    folder = saved(model, tmp_path / "a", built)
    engine = prumux.load(folder).engine
    facts = dict(engine.describe())
    assert facts["stages"] == "two engines, the host defers rows"
    assert (facts["runs"], facts["device"]) == ("the typed graph, rounded to fp16", "cpu")
    found = labels_of(folder, TEXTS)
    onnx_folder = tmp_path / "b"
    save_artifact(replace(model, tokenizer=tiny_tokenizer()), onnx_folder)
    Onnx(precision="fp32", fusion="none").emit(model, make_context(model), onnx_folder)
    assert labels_of(onnx_folder, TEXTS) == found
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "onnxruntime", None)
        torch_engine = prumux.load(folder).engine
        assert torch_engine.describe()["engine"] == "torch"
        assert labels_of(folder, TEXTS) == found
    with pytest.raises(MissingError):
        prumux.load(folder, device="cuda")


def test_a_folder_runs_its_plans_where_a_gpu_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    folder = saved(cascade_of(SOME), tmp_path, built)
    engine = prumux.load(folder).engine
    assert engine.describe()["engine"] == "tensorrt-rtx"
    assert labels_of(folder, TEXTS) == labels_of(folder, TEXTS, device="cpu")
    (folder / "second" / PLAN).unlink()  # then its graph answers
    assert prumux.load(folder).engine.describe()["second_engine"] == "onnxruntime"
    with pytest.raises(ModelError, match="second' holds no plan: build both engines again"):
        verify._engine(folder, 1, "auto")


def test_mixed_up_folders_are_refused(tmp_path: Path) -> None:
    folder = saved(cascade_of(SOME), tmp_path / "a")
    other = saved(
        cascade_of(1.5, second=random_model(heads=(4,), head_dim=12)), tmp_path / "b"
    )
    whole = (folder / CASCADE_FILE).read_text()
    shutil.copy(other / CASCADE_FILE, folder)
    with pytest.raises(ModelError, match="the second engine is another model's"):
        prumux.load(folder)
    (folder / CASCADE_FILE).write_text(whole.replace('"threshold": 0.4', '"threshold": 0.5'))
    with pytest.raises(ModelError, match="another model's: second stage"):
        prumux.load(folder)
    (folder / CASCADE_FILE).write_text(whole.replace('"threshold": 0.4', '"threshold": "a"'))
    with pytest.raises(ModelError, match=r"cascade\.json is not one that prumux wrote"):
        prumux.load(folder)
    (folder / CASCADE_FILE).write_text("{")
    with pytest.raises(ModelError, match=r"cascade\.json"):
        prumux.load(folder)


def test_one_stage_is_written_over_two(tmp_path: Path) -> None:
    model = cascade_of(SOME)
    typed(model, tmp_path)
    engine = typed(replace(model, second=None), tmp_path)
    assert isinstance(engine, OrtEngine)


def test_torch_gives_the_same_answers(tmp_path: Path) -> None:
    model = cascade_of(SOME)
    engine = typed(model, tmp_path)
    inputs = random_batch(model, 16).inputs()
    np.testing.assert_allclose(
        engine.run(inputs), run(module_of(model).eval(), inputs), atol=1e-4
    )
    assert 0 < engine.deferred(inputs).sum() < 16
