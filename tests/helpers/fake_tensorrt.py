"""A stand-in for TensorRT: the classes that we use, on ONNX Runtime's CPU.

It shows that our calls come in an order that works, that shapes and profiles are right and
that buffers hold what they should. It shows nothing of TensorRT.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto

from tests.helpers.tensorrt_list import types_of

__version__ = "11.4.0.106"
FUSE = False
"""Whether the inspector shows one layer for all."""
NOWHERE = 0
"""An address that no buffer can have."""


class DataType(enum.Enum):
    FLOAT = TensorProto.FLOAT
    HALF = TensorProto.FLOAT16
    BF16 = TensorProto.BFLOAT16
    INT8 = TensorProto.INT8
    INT64 = TensorProto.INT64
    BOOL = TensorProto.BOOL


WORDS = dict(
    zip(DataType, ("Float", "Half", "BFloat16", "Int8", "Int64", "Bool"), strict=True)
)
LayerType = enum.Enum("LayerType", ["MATRIX_MULTIPLY", "QUANTIZE", "OTHER"])
TensorIOMode = enum.Enum("TensorIOMode", ["INPUT", "OUTPUT"])
NetworkDefinitionCreationFlag = enum.IntEnum(
    "NetworkDefinitionCreationFlag", {"STRONGLY_TYPED": 0}
)
ProfilingVerbosity = enum.Enum("ProfilingVerbosity", ["LAYER_NAMES_ONLY", "DETAILED"])
MemoryPoolType = enum.Enum("MemoryPoolType", ["WORKSPACE"])
BuilderFlag = enum.Enum("BuilderFlag", ["TF32"])
LayerInformationFormat = enum.Enum("LayerInformationFormat", ["JSON"])


class Logger:
    ERROR = 1

    def __init__(self, severity: int) -> None:
        assert severity == self.ERROR


class Network:
    def __init__(self) -> None:
        self.proto = onnx.ModelProto()
        self.types: dict[str, int] = {}

    @property
    def num_layers(self) -> int:
        return len(self.proto.graph.node)

    def get_layer(self, i: int) -> Any:
        node = self.proto.graph.node[i]
        kinds = {"MatMul": LayerType.MATRIX_MULTIPLY, "QuantizeLinear": LayerType.QUANTIZE}
        value = SimpleNamespace(dtype=DataType(self.types[node.output[0]]))
        kind = kinds.get(node.op_type, LayerType.OTHER)
        return SimpleNamespace(type=kind, name=node.name, get_output=[value].__getitem__)


class OnnxParser:
    def __init__(self, network: Network, logger: Logger) -> None:
        self._network = network
        self.num_errors = 0

    def parse_from_file(self, path: str) -> bool:
        proto = onnx.load(path)
        self._odd = [x for x in proto.graph.node if x.domain]
        self.num_errors = len(self._odd)
        if not self._odd:
            self._network.proto, self._network.types = proto, types_of(proto)
        return not self._odd

    def get_error(self, i: int) -> Any:
        node = self._odd[i]
        return SimpleNamespace(
            node_operator=lambda: node.op_type, node_name=lambda: node.name, desc=lambda: "no"
        )


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, Any] = {}

    def set_shape(self, name: str, low: Any, tuned: Any, high: Any) -> None:
        assert all(a <= b <= c for a, b, c in zip(low, tuned, high, strict=True))
        self.shapes[name] = (low, tuned, high)


class Config:
    def __init__(self) -> None:
        self.builder_optimization_level = -1
        self.profiling_verbosity: Any = None
        self.profiles: list[Profile] = []
        self.cache: bytes | None = None
        self.tf32 = True

    def set_memory_pool_limit(self, pool: Any, limit_bytes: int) -> None:
        assert pool == MemoryPoolType.WORKSPACE
        assert limit_bytes % (1 << 20) == 0

    def clear_flag(self, flag: Any) -> None:
        assert flag == BuilderFlag.TF32
        self.tf32 = False

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

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


class Builder:
    def __init__(self, logger: Logger) -> None: ...

    def create_network(self, flags: int) -> Network:
        assert flags == 1
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert not config.tf32
        assert config.cache is not None
        if config.builder_optimization_level == 5:
            return None  # as if it ran out of memory
        assert config.profiling_verbosity == ProfilingVerbosity.DETAILED
        held = {
            "graph": base64.b64encode(network.proto.SerializeToString()).decode(),
            "profiles": [x.shapes for x in config.profiles],
        }
        return json.dumps(held).encode()


class Runtime:
    def __init__(self, logger: Logger) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            held = json.loads(plan)
        except ValueError:
            return None
        return Engine(onnx.load_from_string(base64.b64decode(held["graph"])), held["profiles"])


class Engine:
    def __init__(self, proto: onnx.ModelProto, profiles: list[dict[str, Any]]) -> None:
        self.proto, self.profiles, self.types = proto, profiles, types_of(proto)
        self.names = [x.name for x in (*proto.graph.input, *proto.graph.output)]
        self.num_io_tensors = len(self.names)
        self.num_optimization_profiles = len(profiles)

    def get_tensor_name(self, i: int) -> str:
        return str(self.names[i])

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        last = name == self.names[-1]
        return TensorIOMode.OUTPUT if last else TensorIOMode.INPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return DataType(self.types[name])

    def get_tensor_profile_shape(self, name: str, i: int) -> list[tuple[int, ...]]:
        return [tuple(x) for x in self.profiles[i][name]]

    def create_engine_inspector(self) -> Any:
        layers = [
            {
                "Name": node.name,
                "Outputs": [
                    {
                        "Name": x,
                        "Dimensions": [-1, 4],
                        "Format/Datatype": WORDS[DataType(self.types[x])],
                    }
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
            side: [
                {"Dimensions": [-1, 4], "Datatype": WORDS[DataType(self.types[x.name])]}
                for x in values
            ]
            for side, values in sides.items()
        }

    def create_execution_context(self) -> Context:
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._session = onnxruntime.InferenceSession(engine.proto.SerializeToString())
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
        logits = self._session.run(None, inputs)[0]
        shape = self.get_tensor_shape("logits")
        _at(self._addresses["logits"], shape, np.float32)[:] = logits
        return True


def _at(address: int, shape: tuple[int, ...], kind: Any) -> NDArray[Any]:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    memory = (ctypes.c_byte * size).from_address(address)
    return np.frombuffer(memory, kind).reshape(shape)
