"""What TensorRT for RTX cannot do without a driver: open an engine and run it.

All that builds is the real library: parser, network, profiles, config and builder. The
runtime here runs the graph that an engine was built from, in ONNX Runtime on the CPU. It shows
that our calls come in an order that works, that profiles are right and that buffers hold what
they should. It shows nothing of TensorRT's runtime.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto

from prumux.export.graph.rounding import rounding
from prumux.export.trt import engine as trt_engine
from prumux.export.trt.library import RTX
from tests.helpers.tensorrt_api import rtx_api
from tests.helpers.tensorrt_list import types_of

FUSE = False
"""Whether the inspector shows one layer for all."""
NOWHERE = 0
"""An address that no buffer can have."""
WORDS: dict[int, str] = {
    TensorProto.FLOAT: "Float",
    TensorProto.FLOAT16: "Half",
    TensorProto.BFLOAT16: "BFloat16",
    TensorProto.INT8: "Int8",
    TensorProto.INT64: "Int64",
    TensorProto.BOOL: "Bool",
}
BUILT: dict[str, bytes] = {}
"""What the real builder gave, by graph and options: a build takes most of a test's time."""
Built = tuple[onnx.ModelProto, list[dict[str, Any]]]


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """A GPU that is none, on which the real builder's engines seem to run."""
    real = rtx_api()
    stream = SimpleNamespace(cuda_stream=1, synchronize=lambda: None)
    patch.setitem(sys.modules, RTX.module, library(real))
    patch.setattr(trt_engine, "DEVICE", "cpu")
    patch.setattr("torch.cuda.is_available", lambda: True)
    patch.setattr("torch.cuda.get_device_name", lambda: "no GPU")
    patch.setattr("torch.cuda.get_device_capability", lambda: (0, 0))
    patch.setattr("torch.cuda.Stream", lambda: stream)
    patch.setattr("torch.cuda.stream", lambda stream: nullcontext())


def library(real: ModuleType) -> ModuleType:
    """The real library with another runtime, which learns of each engine that is built."""
    known: dict[str, Built] = {}
    parsed: list[str] = []

    class OnnxParser:
        def __init__(self, network: Any, logger: Any) -> None:
            self._real = real.OnnxParser(network, logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def parse_from_file(self, path: str) -> bool:
            parsed.append(path)
            return bool(self._real.parse_from_file(path))

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._real, self._profiles = real.Builder(logger), list[Any]()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def create_optimization_profile(self) -> Any:
            self._profiles.append(self._real.create_optimization_profile())
            return self._profiles[-1]

        def build_serialized_network(self, network: Any, config: Any) -> Any:
            names = [network.get_input(i).name for i in range(network.num_inputs)]
            ranges = [{x: profile.get_shape(x) for x in names} for profile in self._profiles]
            options = config.builder_optimization_level, config.flags, names, ranges
            asked = _digest(Path(parsed[-1]).read_bytes() + repr(options).encode())
            if asked not in BUILT:
                made = self._real.build_serialized_network(network, config)
                if made is None:
                    return None
                BUILT[asked] = bytes(made)
            known[_digest(BUILT[asked])] = onnx.load(parsed[-1]), ranges
            return BUILT[asked]

    class Runtime:
        def __init__(self, logger: Any) -> None: ...

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            found = known.get(_digest(plan))
            return Engine(real, *found) if found else None

    found = ModuleType(real.__name__)
    own = {"OnnxParser": OnnxParser, "Builder": Builder, "Runtime": Runtime}
    found.__dict__.update({**vars(real), **own})
    return found


class Engine:
    def __init__(self, real: Any, proto: onnx.ModelProto, profiles: list[Any]) -> None:
        self._real, self.proto, self.profiles = real, proto, profiles
        self.types = types_of(proto)
        self.names = [x.name for x in (*proto.graph.input, *proto.graph.output)]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, i: int) -> str:
        return str(self.names[i])

    def get_tensor_mode(self, name: str) -> Any:
        mode = self._real.TensorIOMode
        return mode.OUTPUT if name == self.names[-1] else mode.INPUT

    def get_tensor_dtype(self, name: str) -> Any:
        kinds = self._real.DataType
        return kinds.INT64 if self.types[name] == TensorProto.INT64 else kinds.FLOAT

    def get_tensor_profile_shape(self, name: str, i: int) -> list[tuple[int, ...]]:
        return [tuple(x) for x in self.profiles[i][name]]

    def create_engine_inspector(self) -> Any:
        layers = [
            {
                "Name": node.name,
                "Outputs": [
                    {"Dimensions": [-1, 4], "Format/Datatype": WORDS[self.types[x]]}
                    for x in node.output
                ],
            }
            for node in self.proto.graph.node
        ]
        text = json.dumps({"Layers": [self._fused()] if FUSE else layers})
        return SimpleNamespace(get_engine_information=lambda kind: text)

    def _fused(self) -> dict[str, Any]:
        """All layers in one, whose values inside are not told."""
        graph = self.proto.graph
        sides = {"Inputs": graph.input, "Outputs": graph.output}
        return {"Name": "{ForeignNode[a...z]}", "LayerType": "Myelin"} | {
            side: [{"Dimensions": [-1, 4], "Datatype": WORDS[self.types[x.name]]} for x in of]
            for side, of in sides.items()
        }

    def create_runtime_config(self) -> Any:
        config = SimpleNamespace(cache=None, create_runtime_cache=Cache)
        config.set_runtime_cache = lambda cache: setattr(config, "cache", cache)
        return config

    def create_execution_context(self, config: Any) -> Context:
        return Context(self, config.cache)


class Cache:
    """The profiles that ran, in place of their kernels."""

    def __init__(self) -> None:
        self.kernels = ""

    def deserialize(self, known: bytes) -> bool:
        right = known.startswith(b"kernels")
        self.kernels = known.decode().removeprefix("kernels") if right else ""
        return right

    def serialize(self) -> bytes:
        return f"kernels{self.kernels}".encode()


class Context:
    def __init__(self, engine: Engine, cache: Cache) -> None:
        self._engine, self._cache = engine, cache
        proto = rounding(engine.proto).SerializeToString()
        self._session = onnxruntime.InferenceSession(proto)
        self._active = 0
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_optimization_profile_async(self, i: int, stream: int) -> bool:
        self._active, self._shapes = i, {}
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.profiles[self._active][name]
        if not all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True)):
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address != NOWHERE

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        rows, tokens = self._shapes["input_ids"]
        dims = self._engine.proto.graph.output[0].type.tensor_type.shape.dim
        return (rows, *((tokens,) if len(dims) == 3 else ()), dims[-1].dim_value)

    def execute_async_v3(self, stream: int) -> bool:
        inputs = {
            name: _at(self._addresses[name], shape, np.int64)
            for name, shape in self._shapes.items()
        }
        if any((x < 0).any() for x in inputs.values()):
            return False
        kernel = f" {self._active}"
        self._cache.kernels += "" if kernel in self._cache.kernels else kernel
        logits = self._session.run(None, inputs)[0]
        shape = self.get_tensor_shape("logits")
        _at(self._addresses["logits"], shape, np.float32)[:] = logits
        return True


def _at(address: int, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = (ctypes.c_byte * size).from_address(address)
    return np.frombuffer(memory, kind).reshape(shape)


def _digest(plan: bytes) -> str:
    return hashlib.sha256(plan).hexdigest()
