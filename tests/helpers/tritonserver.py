"""A stand-in for a Triton server: its Python module, its configurations, and its batcher.

`config.pbtxt` is read with Triton's own schema, `model.py` is imported as Triton's stub does
it, and calls to the engine run the graph that lies in the bundle.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import queue
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnxruntime
import pytest
from google.protobuf import json_format, text_format
from numpy.typing import NDArray

from prumux.export.graph import graph_file
from prumux.export.graph.graph import build
from prumux.export.runtime.ort import session_options
from prumux.export.triton.repository import Serving, write_bundle
from prumux.export.triton.server import WHEEL
from prumux.optimizer.model.model import Model
from tests.helpers.factory import Kind, multiplexed, random_model

BACKEND = "triton_python_backend_utils"
needs_server = pytest.mark.skipif(
    not (WHEEL / "pytriton").is_dir(),
    reason="no Triton server: `make triton` installs it",
)
if (WHEEL / "pytriton").is_dir():
    sys.path.append(str(WHEEL))  # last: what the clients of the real server need lies there


SERVING = Serving(max_batch=8, length=12)
N = 3


def small(n: int = 1, task: Kind = "text-classification", **fields: Any) -> Model:
    model = random_model(heads=(4, 4), hidden=16, labels=3, task=task, **fields)
    return multiplexed(model, n=n, at=1) if n > 1 else model


def bundle(model: Model, folder: Path, serving: Serving = SERVING) -> Path:
    graph_file.save(build(model), folder)
    write_bundle(model.encoder, model.task, folder / "model.onnx", folder / "triton", serving)
    return folder / "triton"


@functools.cache
def schema() -> Any:
    """Triton's own messages, from the file in `tritonclient` that holds them.

    Imported by its path: the package around it wants grpcio and an older protobuf.
    """
    found = importlib.util.find_spec("tritonclient")
    if found is None or not found.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    path = Path(found.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_config(folder: Path) -> Any:
    """A model's `config.pbtxt` as Triton's own message."""
    text = (folder / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, schema().ModelConfig())


class Tensor:
    """A named array."""

    def __init__(self, name: str, values: NDArray[Any]) -> None:
        self._name, self._values = name, values

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> NDArray[Any]:
        return self._values


class TritonError:
    """What is wrong with a request."""

    INTERNAL, INVALID_ARG, CANCELLED = "internal", "invalid argument", "cancelled"

    def __init__(self, message: str, code: str = INTERNAL) -> None:
        self._message, self.code = message, code

    def message(self) -> str:
        return self._message


@dataclass
class Response:
    """What a model answers to one request."""

    output_tensors: list[Tensor]
    error_: TritonError | None = None

    def has_error(self) -> bool:
        return self.error_ is not None

    def error(self) -> TritonError | None:
        return self.error_

    @property
    def logits(self) -> NDArray[Any]:
        (tensor,) = self.output_tensors
        assert tensor.name() == "logits"
        return tensor.as_numpy()


@dataclass
class Request:
    """A client's request."""

    inputs: dict[str, NDArray[Any]]
    cancelled: bool = False

    def is_cancelled(self) -> bool:
        return self.cancelled

    @property
    def rows(self) -> int:
        return len(self.inputs["input_ids"])


def request(
    ids: list[list[int]], tenants: list[str] | None = None, width: int = 0, pad: int = 0
) -> Request:
    """Rows of tokens, padded to the longest or to `width`."""
    width = max(width, *map(len, ids))
    values = np.full((len(ids), width), pad, np.int64)
    mask = np.zeros_like(values)
    for i, row in enumerate(ids):
        values[i, : len(row)], mask[i, : len(row)] = row, 1
    inputs: dict[str, NDArray[Any]] = {"input_ids": values, "attention_mask": mask}
    inputs["token_type_ids"] = np.zeros_like(values)
    if tenants is not None:
        inputs["tenant"] = np.array([[x.encode()] for x in tenants], dtype=object)
    return Request(inputs)


@dataclass
class Server:
    """One bundle, loaded: its engines in ONNX Runtime, the packer from its own folder."""

    folder: Path
    runs: list[dict[str, NDArray[Any]]] = field(default_factory=list)
    """What the engine was given."""
    poison: int = -1
    """A token at which the engine fails."""
    calls: list[str] = field(default_factory=list)
    """The engine of each run."""

    def load(self, patch: pytest.MonkeyPatch) -> Any:
        """The packer's model, initialised as Triton does it."""
        engines = [x.parent for x in self.folder.glob("prumux_*/config.pbtxt")]
        self._most = {x.name: read_config(x).max_batch_size for x in engines}
        self._sessions = {
            x.name: onnxruntime.InferenceSession(
                str(x / "1" / "model.onnx"), session_options(1)
            )
            for x in engines
        }
        patch.setitem(sys.modules, BACKEND, self._backend())
        home = self.folder / "prumux"
        patch.syspath_prepend(home / "1")
        patch.syspath_prepend(home)
        for name in ("1", "1.model", "prumux_slots"):
            patch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        model = importlib.import_module("1.model").TritonPythonModel()
        told = json_format.MessageToDict(read_config(home), preserving_proto_field_name=True)
        model.initialize({"model_config": json.dumps(told), "model_name": "prumux"})
        return model

    def run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """The engine on whole groups."""
        return self._run_on("prumux_engine", inputs)

    def _run_on(self, engine: str, inputs: dict[str, NDArray[Any]]) -> NDArray[Any]:
        found: NDArray[Any] = self._sessions[engine].run(["logits"], inputs)[0]
        return found

    def _backend(self) -> ModuleType:
        server = self

        @dataclass
        class InferenceRequest:
            model_name: str
            requested_output_names: list[str]
            inputs: list[Tensor]
            preferred_memory: Any

            def exec(self) -> Response:
                return server._exec(self)

        made: Any = ModuleType(BACKEND)
        made.Tensor, made.TritonError = Tensor, TritonError
        made.InferenceRequest = InferenceRequest
        made.InferenceResponse = lambda output_tensors, error=None: Response(
            output_tensors, error
        )
        made.TRITONSERVER_MEMORY_CPU, made.PreferredMemory = "cpu", lambda *where: where
        made.get_input_tensor_by_name = lambda x, name: (
            Tensor(name, x.inputs[name]) if name in x.inputs else None
        )
        made.get_output_tensor_by_name = lambda x, name: next(
            t for t in x.output_tensors if t.name() == name
        )
        module: ModuleType = made
        return module

    def _exec(self, asked: Any) -> Response:
        """As Triton runs a call of one model to another."""
        inputs = {x.name(): x.as_numpy() for x in asked.inputs}
        rows = len(inputs["input_ids"])
        try:
            most = self._most[asked.model_name]
            assert asked.preferred_memory == ("cpu", 0)
            assert 0 < rows <= most, f"{rows} rows, max_batch_size is {most}"
            assert all(x.dtype == np.int64 for x in inputs.values())
            assert self.poison not in inputs["input_ids"], "the engine broke"
            self.runs.append(inputs)
            self.calls.append(asked.model_name)
            second = asked.model_name == "prumux_second"
            logits = self._run_on("prumux_second", inputs) if second else self.run(inputs)
            return Response([Tensor("logits", logits)])
        except Exception as error:  # Triton hands any error of a model to its caller
            return Response([], TritonError(f"{type(error).__name__}: {error}"))


Waiting = tuple[Request, Future[Response]]


@dataclass
class Batcher:
    """Triton's dynamic batcher as a packer sees it: requests that wait come together."""

    model: Any
    most: int
    batches: list[list[Request]] = field(default_factory=list)
    _waiting: queue.Queue[Waiting | None] = field(default_factory=queue.Queue)

    def __enter__(self) -> Batcher:
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting.put(None)
        self._thread.join()

    def infer(self, asked: Request) -> Response:
        """Called from many threads; returns when it is answered."""
        future: Future[Response] = Future()
        self._waiting.put((asked, future))
        return future.result(timeout=60)

    def _serve(self) -> None:
        first = self._waiting.get()
        while first is not None:
            taken, after = self._collect(first)
            self.batches.append([x for x, _ in taken])
            answers = self.model.execute(self.batches[-1])
            for (_, future), found in zip(taken, answers, strict=True):
                future.set_result(found)
            first = after[0] if after else self._waiting.get()

    def _collect(self, first: Waiting) -> tuple[list[Waiting], list[Waiting | None]]:
        """What is run together, and what came next and did not fit, if anything did."""
        taken, rows = [first], first[0].rows
        while True:
            try:
                more = self._waiting.get(timeout=0.002)
            except queue.Empty:
                return taken, []
            if more is None or not self._fits(taken, rows, more[0]):
                return taken, [more]
            taken.append(more)
            rows += more[0].rows

    def _fits(self, taken: list[Waiting], rows: int, more: Request) -> bool:
        """Requests with and without an optional input are never joined by Triton."""
        alike = taken[0][0].inputs.keys() == more.inputs.keys()
        return alike and rows + more.rows <= self.most
