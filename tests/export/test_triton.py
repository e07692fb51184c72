"""Triton bundles: configurations that fit the graph, and a packer that mixes nobody up."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from prumux.export.graph import graph_file as graphfile
from prumux.export.graph.graph import build
from prumux.export.runtime.grouping import PredictionJob
from prumux.export.runtime.grouping import answer as answer_job
from prumux.export.runtime.ort import OrtEngine
from prumux.export.triton.repository import Serving, serving_point, write_bundle
from prumux.optimizer.base.errors import ModelError, UsageError
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from tests.helpers.factory import Kind, multiplexed, random_batch, random_model, tiny_tokenizer
from tests.helpers.tritonserver import (
    Batcher,
    Request,
    Response,
    Server,
    read_config,
    request,
    schema,
)

SERVING = Serving(max_batch=8, length=12)
N = 3


def small(n: int = 1, task: Kind = "text-classification", **fields: Any) -> Model:
    model = random_model(heads=(4, 4), hidden=16, labels=3, task=task, **fields)
    return multiplexed(model, n=n, at=1) if n > 1 else model


def bundle(model: Model, folder: Path, serving: Serving = SERVING) -> Path:
    graphfile.save(build(model), folder)
    write_bundle(model.encoder, model.task, folder / "model.onnx", folder / "triton", serving)
    return folder / "triton"


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
    engine = read_config(folder / ("prumux_engine" if n > 1 else "prumux"))
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
    if n > 1:
        assert not engine.HasField("dynamic_batching"), "it would mix tenants"
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
    place = folder / "prumux" / "1" / "model.onnx"
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


Asking = tuple[list[list[int]], list[str] | None]


def askings(count: int, seed: int = 0) -> list[Asking]:
    """Requests of 1 to 3 rows of several lengths; a third of them of no tenant."""
    random = np.random.default_rng(seed)
    found: list[Asking] = []
    for i in range(count):
        rows = [
            random.integers(1, 101, random.integers(1, 13)).tolist()
            for _ in range(random.integers(1, 4))
        ]
        found.append((rows, None if i % 3 == 0 else [f"tenant {i % 3}"] * len(rows)))
    return found


def by_predictor(
    server: Server, together: list[Asking], batch_size: int = 6
) -> list[NDArray[Any]]:
    """What our own predictor gives when it serves these requests as one job."""
    ids = tuple(tuple(row) for rows, _ in together for row in rows)
    tenants = tuple(x for rows, who in together for x in who or (None,) * len(rows))
    types = Ragged.of((0,) * len(x) for x in ids)
    encoded = Encoded(Ragged.of(ids), types, None, 0)
    engine = OrtEngine(server.folder / "prumux_engine" / "1" / "model.onnx", 1)
    logits = answer_job(engine, N, PredictionJob(encoded, batch_size, tenants=tenants))
    ends = np.cumsum([len(rows) for rows, _ in together])
    return [
        np.asarray(logits[end - len(rows) : end])
        for (rows, _), end in zip(together, ends, strict=True)
    ]


def test_requests_of_several_lengths_and_tenants(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(mixed)
    model = server.load(monkeypatch)
    asked = [x for x in askings(12) if x[1] is not None]
    found = model.execute([request(rows, who, width=15) for rows, who in asked])
    expected = by_predictor(server, asked)
    for response, logits in zip(found, expected, strict=True):
        assert not response.has_error()
        assert response.logits.dtype == np.float32
        np.testing.assert_array_equal(response.logits, logits)
    owner = {tuple(row): who[0] for rows, who in asked if who for row in rows}
    for inputs in server.runs:
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        owners = [owner[tuple(ids[mask == 1].tolist())] for ids, mask in rows]
        groups = [owners[i : i + N] for i in range(0, len(owners), N)]
        assert all(len(set(group)) == 1 and len(group) == N for group in groups)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_short_tail_is_filled_with_its_own_rows(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    server = Server(mixed)
    model = server.load(monkeypatch)
    ids = [[7 + i, 8, 9] for i in range(rows)]
    (found,) = model.execute([request(ids)])
    # The last group holds the rows that are left, over and over.
    filled = [i for group in ([0, 1, 2],) * (rows > 3) for i in group]
    tail = list(range(len(filled), rows))
    filled += [tail[i % len(tail)] for i in range(N)]
    logits = server.run(request([ids[i] for i in filled]).inputs)
    means = [
        logits[[at for at, i in enumerate(filled) if i == r]].mean(0) for r in range(rows)
    ]
    np.testing.assert_allclose(found.logits, means, atol=1e-6)


def test_one_bad_request_fails_alone(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(mixed, poison=100)
    model = server.load(monkeypatch)
    good = [([[5, 6, 7], [8, 9]], None), ([[11, 12]], None)]
    asked = [request(rows) for rows, _ in good]
    alone = [x.logits for x in model.execute(asked)]
    twisted = request([[1, 2]])
    twisted.inputs["attention_mask"] = np.ones((1, 3), np.int64)
    bad: list[tuple[Request, str]] = [
        (request([[5, 101]]), "input_ids go from 5 to 101, the model knows 0..100"),
        (request([[5, -1]]), "input_ids go from -1 to 5"),
        (request([[5] * 41]), "a row has 41 tokens, the model takes 40"),
        (twisted, r"inputs must be \[rows, tokens\], all alike; given: "),
        (request([[5], [6]], ["a"]), "1 tenants of 2 rows: give one a row"),
    ]
    for request_, message in bad:
        first, failed, second = model.execute([asked[0], request_, asked[1]])
        assert re.match(message, failed.error().message())
        np.testing.assert_array_equal(first.logits, alone[0])
        np.testing.assert_array_equal(second.logits, alone[1])
    # The engine breaks at a run that holds rows of all: each is run again by itself.
    first, failed, second = model.execute([asked[0], request([[100]]), asked[1]])
    assert "the engine broke" in failed.error().message()
    for response, case in ((first, good[0]), (second, good[1])):
        np.testing.assert_array_equal(response.logits, by_predictor(server, [case])[0])


def test_concurrent_callers_get_their_own_answers(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(mixed)
    model = server.load(monkeypatch)
    asked = askings(300, seed=1)
    requests = [request(*x, width=i % 9) for i, x in enumerate(asked)]
    with Batcher(model, most=6) as batcher, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(batcher.infer, requests))
    assert max(map(len, batcher.batches)) > 1, "requests must have met"
    # The same groups one after the other, with our own predictor.
    place = {id(x): i for i, x in enumerate(requests)}
    for batch in batcher.batches:
        at = [place[id(x)] for x in batch]
        expected = by_predictor(server, [asked[i] for i in at])
        for i, logits in zip(at, expected, strict=True):
            np.testing.assert_array_equal(found[i].logits, logits)


def test_tokens_are_tagged_at_the_places_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(bundle(small(N, "token-classification"), tmp_path))
    model = server.load(monkeypatch)
    rows = [[[5, 6, 7], [8, 9]], [[10]], [[11, 12, 13, 14]]]
    found = [x.logits for x in model.execute([request(x, width=5) for x in rows])]
    assert [x.shape for x in found] == [(2, 5, 3), (1, 5, 3), (1, 5, 3)]
    (inputs,) = server.runs
    assert inputs["input_ids"].shape == (6, 4)
    logits = server.run(inputs)
    for ids, got in [(row, x[i]) for case, x in zip(rows, found, strict=True)
                     for i, row in enumerate(case)]:  # fmt: skip
        same = [
            y[: len(ids)]
            for x, mask, y in zip(
                inputs["input_ids"], inputs["attention_mask"], logits, strict=True
            )
            if x[mask == 1].tolist() == ids
        ]
        np.testing.assert_allclose(got[: len(ids)], np.mean(same, axis=0), atol=1e-6)
        assert not got[len(ids) :].any()


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
    assert "{" not in re.sub(r"(?s)```.*?```", "", text)
    run: Callable[[Request], Response]
    if n > 1:
        packer = Server(folder).load(monkeypatch)
        run = lambda x: packer.execute([x])[0]  # noqa: E731
    else:
        engine = OrtEngine(folder / "prumux" / "1" / "model.onnx", 1)
        run = lambda x: _plain(engine, x)  # noqa: E731
    client = _client(run)
    monkeypatch.setitem(sys.modules, "tritonclient", client)
    monkeypatch.setitem(sys.modules, "tritonclient.http", client.http)
    monkeypatch.chdir(folder)
    blocks = re.findall(r"(?s)```python\n(.*?)```", text)
    assert len(blocks) == (2 if n > 1 else 1)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
        assert names["logits"].shape == (2, 3)


def _plain(engine: OrtEngine, asked: Request) -> Response:
    from tests.helpers.tritonserver import Tensor

    return Response([Tensor("logits", engine.run(asked.inputs))])


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
