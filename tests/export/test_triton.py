"""Triton bundles: configurations that fit the graph, and a guide that can be followed."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from prumux.export.triton.repository import Serving, serving_point, write_bundle
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.model.model import Model
from tests.helpers.factory import random_batch, tiny_tokenizer
from tests.helpers.tritonserver import (
    SERVING,
    N,
    Request,
    Response,
    Server,
    bundle,
    read_config,
    schema,
    small,
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(small(N), tmp_path_factory.mktemp("mixed"))


@pytest.mark.parametrize(
    "model",
    [
        small(),
        small(family="distilbert"),
        small(task="token-classification"),
        small(N),
        small(N, "token-classification"),
        small(2, family="roberta"),
    ],
    ids=lambda m: f"{m.source['name']}-{m.task.kind}-{m.encoder.slots}",
)
def test_configurations_fit_the_graph(model: Model, tmp_path: Path) -> None:
    folder = bundle(model, tmp_path)
    n = model.encoder.slots
    engine = read_config(folder / "prumux_engine")
    file = folder / engine.name / "1" / engine.default_model_filename
    graph = onnx.load(file).graph
    assert _ports(engine.input) == [_port(x) for x in graph.input]
    assert _ports(engine.output) == [_port(x) for x in graph.output]
    assert engine.backend == "onnxruntime"
    assert engine.max_batch_size == 8 // n * n
    assert engine.instance_group[0].count == 1
    for warm in engine.model_warmup:
        assert warm.batch_size % n == 0
        assert warm.batch_size <= engine.max_batch_size
        assert set(warm.inputs) == {x.name for x in graph.input}
    client = read_config(folder / "prumux")
    batching = client.dynamic_batching
    assert all(x % n == 0 for x in batching.preferred_batch_size)
    assert max(batching.preferred_batch_size) == client.max_batch_size
    assert batching.max_queue_delay_microseconds == 1000
    assert engine.HasField("dynamic_batching") == (n == 1), "it would mix tenants"
    *inputs, tenant = client.input
    assert _ports(inputs) == _ports(engine.input)
    assert all(x.allow_ragged_batch for x in inputs)
    assert (tenant.name, list(tenant.dims), tenant.optional) == ("tenant", [1], True)
    assert _ports(client.output) == _ports(engine.output)
    assert client.backend == "python"
    for output in client.output:
        if output.label_filename:
            lines = (folder / "prumux" / output.label_filename).read_text().splitlines()
            assert lines == list(model.task.labels)
    assert bool(client.output[0].label_filename) == model.encoder.pooled


def _port(value: Any) -> tuple[str, str, int, list[int]]:
    """Name, type, rank and fixed sizes of a graph's input or output, its rows left out."""
    kinds = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32"}
    tensor = value.type.tensor_type
    rows, *dims = tensor.shape.dim
    assert rows.dim_param, "the number of rows must be free"
    sizes = [x.dim_value if x.HasField("dim_value") else -1 for x in dims]
    return value.name, kinds[tensor.elem_type], len(sizes), sizes


def _ports(values: Any) -> list[tuple[str, str, int, list[int]]]:
    kind = schema().DataType.Name
    return [(x.name, kind(x.data_type), len(x.dims), list(x.dims)) for x in values]


def test_a_plan_is_served_by_tensorrt(tmp_path: Path) -> None:
    model = small(2)
    plan = tmp_path / "model.plan"
    plan.write_bytes(b"engine")
    serving = Serving(profiles=2)
    files = write_bundle(model.encoder, model.task, plan, tmp_path / "triton", serving)
    assert set(files) == {
        "README.md",
        "prumux/1/model.py",
        "prumux/1/prumux_slots.py",
        "prumux/config.pbtxt",
        "prumux/labels.txt",
        "prumux_engine/1/model.plan",
        "prumux_engine/config.pbtxt",
    }
    config = read_config(tmp_path / "triton" / "prumux_engine")
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert "the one that built" in (tmp_path / "triton" / "README.md").read_text()


def test_a_graph_is_served_by_the_python_backend(tmp_path: Path) -> None:
    """Its model.py is the engine, and finds the graph and its weights beside itself."""
    serving = replace(SERVING, backend="python", threads=2, packers=4)
    folder = bundle(small(), tmp_path, serving)
    config = read_config(folder / "prumux_engine")
    assert (config.backend, config.default_model_filename) == ("python", "")
    assert config.parameters["threads"].string_value == "2"
    assert read_config(folder / "prumux").instance_group[0].count == 4
    assert {x.name for x in (folder / "prumux_engine" / "1").iterdir()} == {
        "model.onnx",
        "model.py",
    }
    text = (folder / "README.md").read_text()
    assert 'sh -c "pip install onnxruntime && tritonserver --model-repository=/models"' in text
    assert "python -m prumux.export.triton.server . --wheel ~/triton-server" in text


def test_a_serving_point_warms_up_at_its_own_length() -> None:
    model = small()
    batches = [random_batch(model, rows=4, length=9), random_batch(model, rows=70, length=7)]
    assert serving_point(batches) == Serving(max_batch=70, length=9)
    assert serving_point(batches[:1]) == Serving(max_batch=64, length=9)


def test_large_weights_come_along(tmp_path: Path) -> None:
    model = small()
    (tmp_path / "model.onnx").write_bytes(b"graph")
    (tmp_path / "model.onnx_data").write_bytes(b"weights")
    folder = tmp_path / "triton"
    for _ in range(2):  # what was there is replaced
        write_bundle(model.encoder, model.task, tmp_path / "model.onnx", folder)
    place = folder / "prumux_engine" / "1" / "model.onnx"
    assert {x.name: x.read_bytes() for x in place.iterdir()} == {
        "model.onnx": b"graph",
        "model.onnx_data": b"weights",
    }


def test_what_is_refused(tmp_path: Path) -> None:
    model = small()
    with pytest.raises(ModelError, match=r"model\.onnx' is not a model\.onnx or model\.plan"):
        write_bundle(model.encoder, model.task, tmp_path / "model.onnx", tmp_path / "triton")
    with pytest.raises(UsageError, match="cannot be called 'a b'"):
        Serving(name="a b")
    with pytest.raises(UsageError, match="max_batch is 0: use 1 or more"):
        Serving(max_batch=0)


def test_the_packer_stands_alone(mixed: Path) -> None:
    """Nothing but numpy and the standard library is there in a server."""
    found = set()
    for path in (mixed / "prumux" / "1").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {x.name.partition(".")[0] for x in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.module is not None
                found.add(node.module.partition(".")[0])
    allowed = {"numpy", "triton_python_backend_utils", "prumux_slots"}
    assert found - set(sys.stdlib_module_names) == allowed


@pytest.mark.parametrize("n", [1, N])
def test_the_guide_can_be_followed(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python runs as it stands, against the bundle that it lies in."""
    model = replace(small(n), tokenizer=tiny_tokenizer())
    assert model.tokenizer is not None
    model.tokenizer.save_pretrained(str(tmp_path))
    folder = bundle(model, tmp_path)
    text = (folder / "README.md").read_text()
    assert "tritonserver --model-repository=/models" in text
    assert ("## Requests of unequal length" in text) == (n == 1)
    assert "{" not in re.sub(r"(?s)```.*?```", "", text)
    packer = Server(folder).load(monkeypatch)
    client = _client(lambda x: packer.execute([x])[0])
    monkeypatch.setitem(sys.modules, "tritonclient", client)
    monkeypatch.setitem(sys.modules, "tritonclient.http", client.http)
    monkeypatch.chdir(folder)
    blocks = re.findall(r"(?s)```python\n(.*?)```", text)
    assert len(blocks) == (2 if n > 1 else 1)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        assert names["logits"].shape == (2, 3)


def _client(run: Callable[[Request], Response]) -> Any:
    """The part of `tritonclient.http` that the guide uses."""

    class InferInput:
        def __init__(self, name: str, shape: list[int], datatype: str) -> None:
            self.name, self.shape, self.datatype = name, shape, datatype

        def set_data_from_numpy(self, values: NDArray[Any]) -> None:
            kinds = {"INT64": np.int64, "BYTES": np.object_}
            assert values.dtype == kinds[self.datatype]
            assert list(values.shape) == self.shape
            self.values = values

    class InferenceServerClient:
        def __init__(self, url: str) -> None:
            assert url == "localhost:8000"

        def infer(self, name: str, inputs: list[InferInput]) -> Any:
            assert name == "prumux"
            response = run(Request({x.name: x.values for x in inputs}))
            assert not response.has_error()
            (tensor,) = response.output_tensors
            made: Any = ModuleType("result")
            made.as_numpy = {"logits": tensor.as_numpy()}.__getitem__
            return made

    made: Any = ModuleType("tritonclient")
    made.http = ModuleType("tritonclient.http")
    made.http.InferInput = InferInput
    made.http.InferenceServerClient = InferenceServerClient
    return made
