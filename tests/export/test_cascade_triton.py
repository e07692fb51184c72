"""Cascades of TensorRT in Triton: two engines, and a packer that defers rows between them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.export.benchmark import verify
from prumux.export.onnx import Onnx
from prumux.export.tensorrt import TensorRt
from prumux.export.triton.repository import SecondEngine, Serving, write_bundle
from prumux.export.triton.server import serving
from prumux.optimizer.model.cascade import module_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import run
from tests.helpers.cascades import cascade_of
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model
from tests.helpers.tensorrt_api import rtx_api
from tests.helpers.triton_served import TritonClient
from tests.helpers.tritonserver import Server, needs_server, read_config, request

NONE, SOME, ALL = 0.0, 0.4, 3e38


@pytest.fixture(autouse=True, scope="module")
def library() -> None:
    rtx_api()  # skips, or fails, where it is not installed


def emitted(model: Model, folder: Path) -> Any:
    """The two engines of a cascade."""
    target = TensorRt("fp32", flavor="rtx").draft()  # writes the typed graphs only
    target.emit(model, make_context(model, random_batch(model, 6, 12)), folder)
    return target.engine(folder, 1)


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize(("threshold", "share"), [(NONE, 1.0), (SOME, 1.0), (ALL, 0.5)])
def test_triton_serves_both_graphs(
    threshold: float,
    share: float,
    slots: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = random_model(heads=(4, 4), head_dim=12)
    first = multiplexed(first, slots) if slots > 1 else first
    model = cascade_of(threshold, first=first, max_share=share)
    engine = emitted(model, tmp_path)
    ctx = make_context(model, random_batch(model, 6, 12))
    TensorRt("fp32", flavor="rtx").bundle(model, ctx, tmp_path)
    folder = tmp_path / "triton"
    second = read_config(folder / "prumux_second")
    assert (second.backend, second.name) == ("onnxruntime", "prumux_second")
    assert second.max_batch_size == read_config(folder / "prumux_engine").max_batch_size
    guide = (folder / "README.md").read_text()
    assert "prumux_second" in guide
    assert "{" not in guide.split("## Two engines")[1]
    server = Server(folder)
    packer = server.load(monkeypatch)
    rng = np.random.default_rng(0)  # short rows first, as the packer sorts them
    rows = [rng.integers(6, 100, 1 + i // 2).tolist() for i in range(12)]
    answers = packer.execute([request(rows[:5]), request(rows[5:])])
    found = np.concatenate([x.logits for x in answers])
    expected = engine.run(request(rows).inputs)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ("prumux_second" in server.calls) == (threshold != NONE)
    server.poison = rows[0][0] = 5
    broken, right = packer.execute([request(rows[:1]), request(rows[5:6])])
    assert broken.has_error()
    assert not right.has_error()


@needs_server
@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 3])
def test_a_real_server_runs_both_graphs(slots: int, tmp_path: Path) -> None:
    first = random_model(heads=(4, 4), head_dim=12)
    first = multiplexed(first, slots) if slots > 1 else first
    model = cascade_of(SOME, first=first)
    engine = emitted(model, tmp_path)
    assert model.second is not None
    write_bundle(
        *(model.encoder, model.task, tmp_path / "first" / "model.onnx", tmp_path / "triton"),
        Serving(max_batch=12, length=9, backend="python", threads=1, packers=1),
        second=SecondEngine(tmp_path / "second" / "model.onnx", model.second),
    )
    inputs = random_batch(model, 12, 9).inputs()
    order = np.argsort(inputs["attention_mask"].sum(1), kind="stable")
    inputs = {name: x[order] for name, x in inputs.items()}
    assert 0 < engine.deferred(inputs).sum() < 12
    with serving(tmp_path / "triton") as running:
        with TritonClient(running, "http") as client:
            packed = client.infer("prumux", inputs)
        served = verify._served(tmp_path, running.http, model.encoder)
        found = served.run(inputs)
    assert served.describe()["stages"] == "two engines, the host defers rows"
    for x in (packed, found):
        np.testing.assert_allclose(x, engine.run(inputs), atol=1e-5)


def test_triton_serves_both_plans(tmp_path: Path) -> None:
    model = cascade_of(SOME)
    for stage in ("first", "second"):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / "model.plan").write_bytes(stage.encode())
    batches = [random_batch(model, 6, length) for length in (5, 12)]
    TensorRt(flavor="tensorrt").bundle(model, make_context(model, *batches), tmp_path)
    for name, stage in (("engine", "first"), ("second", "second")):
        place = tmp_path / "triton" / f"prumux_{name}"
        assert (place / "1" / "model.plan").read_bytes() == stage.encode()
        config = read_config(place)
        assert (config.backend, config.max_batch_size) == ("tensorrt", 6)
        assert list(config.instance_group[0].profile) == ["0"]
        assert {x.batch_size for x in config.model_warmup} == {1, 6}
    parameters = read_config(tmp_path / "triton" / "prumux").parameters
    told = {k: parameters[k].string_value for k in ("engine", "second", "threshold")}
    assert told == {"engine": "prumux_engine", "second": "prumux_second", "threshold": "0.4"}


def test_a_cascade_in_one_graph_is_served_as_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = cascade_of(SOME)
    Onnx(precision="fp32", fusion="none").emit(model, make_context(model), tmp_path)
    write_bundle(
        *(model.encoder, model.task, tmp_path / "model.onnx", tmp_path / "triton"),
        Serving(max_batch=8, length=12),
    )
    names = {x.name for x in (tmp_path / "triton").iterdir()}
    assert names == {"README.md", "prumux", "prumux_engine"}
    assert "second" not in read_config(tmp_path / "triton" / "prumux").parameters
    asked = request([[9, 8, 7], [6]])
    (found,) = Server(tmp_path / "triton").load(monkeypatch).execute([asked])
    expected = run(module_of(model).eval(), asked.inputs)
    np.testing.assert_allclose(found.logits, expected, atol=1e-4)
