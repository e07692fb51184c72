"""A TensorRT engine, ready to run, with torch's CUDA tensors as its buffers.

The code uses the API of TensorRT 10.13 and 11 and of TensorRT for RTX 1.7. A test compares
every call with both APIs. We have not run an engine with this code, because we had no machine
with a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import ModelError, PrumuxError, UsageError
from prumux.optimizer.model.row_groups import in_groups

from .library import CLASSIC, FLAVORS, Flavor, flavor_of, gpu
from .plan_facts import read_facts
from .profiles import Profile, nearest
from .rtx import RuntimeCache

if TYPE_CHECKING:
    import tensorrt as trt

DEVICE = "cuda"
PLANS = tuple(x.plan for x in FLAVORS)
"""Names of engine files in an artifact folder."""


class TrtEngine:
    """A plan that runs on the GPU. Inputs and logits are in host memory."""

    def __init__(self, plan: Path) -> None:
        """Load a plan, and the JSON file that describes it.

        Raises:
            MissingError: TensorRT or the GPU is missing.
            ModelError: the plan is missing, damaged, or built for another GPU or TensorRT.
        """
        import torch

        flavor = flavor_of(plan)
        here = flavor.library()
        self._gpu = gpu(flavor.title)
        facts = read_facts(plan)
        logger = here.Logger(here.Logger.ERROR)
        runtime = here.Runtime(logger)
        try:
            engine = runtime.deserialize_cuda_engine(plan.read_bytes())
        except OSError as error:
            raise ModelError(f"'{plan}' cannot be read: {error.strerror}") from error
        if engine is None:
            by = f"{flavor.title} {here.__version__}"
            raise ModelError(_not_ours(plan, facts, by, self._gpu))
        self._keep = logger, runtime  # they must live as long as the engine
        self._engine = engine
        self._cache = RuntimeCache(engine, plan) if flavor.portable else None
        self._context: trt.IExecutionContext = (
            self._cache.context if self._cache else engine.create_execution_context()
        )
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._names = inputs_of(engine, flavor)
        self._output = output_of(engine, flavor)
        self._profiles = profiles_of(engine, self._names[0])
        self._most_rows = max(x.rows[2] for x in self._profiles)
        self._active = -1
        self._used: set[int] = set()
        self._flavor = flavor
        self._facts = facts
        self._version = str(here.__version__)
        self.slots = max(1, int(facts.get("slots", min(x.rows[0] for x in self._profiles))))
        """Number of rows that share a forward pass: the fewest rows that a profile accepts."""
        self._one_at_a_time = Lock()
        self._run = in_groups(self._whole_groups, self.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the engine's inputs, in order."""
        return self._names

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C], for any number of rows.

        Args:
            inputs: exactly the engine's inputs by name, int64 [B, T] each.

        Raises:
            UsageError: an input is missing or unknown, or the rows are too long.
            PrumuxError: TensorRT failed.
        """
        if set(inputs) != set(self._names):
            raise UsageError(
                f"the engine takes {', '.join(self._names)}; given: {', '.join(inputs)}\n"
                "tokenise with the tokenizer that lies beside it"
            )
        return self._run(inputs)

    def describe(self) -> Mapping[str, str]:
        """Facts that belong to every measurement.

        Times include the copies to and from the GPU. No CUDA graph is used.
        """
        return {
            "engine": self._flavor.engine,
            "version": self._version,
            "device": self._gpu,
            "threads": "1",
            "precision": str(self._facts.get("precision", "unknown")),
            "timing": "host to host, no CUDA graph",
        }

    def _whole_groups(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Compute logits of whole groups, in runs of at most the rows that profiles allow."""
        rows, most = len(inputs[self._names[0]]), self._most_rows
        parts = [
            self._once({name: x[i : i + most] for name, x in inputs.items()})
            for i in range(0, max(rows, 1), most)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _once(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        with self._one_at_a_time:  # a context has one set of buffers
            return self._alone(inputs)

    def _alone(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        import torch

        context, stream = self._context, self._stream
        rows, tokens = inputs[self._names[0]].shape
        index = self._profile(rows, tokens)
        self._use(index)
        with torch.cuda.stream(stream):
            held = []  # inputs must live until the run is over
            for name, x in inputs.items():
                whole = np.ascontiguousarray(x, dtype=np.int64)
                on_gpu = torch.from_numpy(whole).to(DEVICE)
                held.append(on_gpu)
                if not context.set_input_shape(name, tuple(whole.shape)):
                    raise PrumuxError(self._not_taken(name, whole.shape, index))
                if not context.set_tensor_address(name, on_gpu.data_ptr()):
                    raise PrumuxError(_no_buffer(name, whole.shape))
            shape = tuple(context.get_tensor_shape(self._output))
            logits = torch.empty(shape, dtype=torch.float32, device=DEVICE)
            if not context.set_tensor_address(self._output, logits.data_ptr()):
                raise PrumuxError(_no_buffer(self._output, shape))
            done = context.execute_async_v3(stream.cuda_stream)
            found: NDArray[np.float32] = logits.cpu().numpy()  # waits for the stream
        if not done:
            raise PrumuxError(
                f"TensorRT failed on inputs of {rows} x {tokens}; it says why above"
            )
        if self._cache and index not in self._used:
            self._used.add(index)
            self._cache.save()
        return found

    def _profile(self, rows: int, tokens: int) -> int:
        index = nearest(self._profiles, rows, tokens)
        if index is None:
            most = max(x.tokens[2] for x in self._profiles)
            least = min(x.rows[0] for x in self._profiles)
            raise UsageError(
                f"inputs of {rows} x {tokens} fit no profile of the engine, which takes "
                f"{least}..{self._most_rows} rows of up to {most} tokens\n"
                "cut the rows, or build it again with --batch and --length to suit"
            )
        return index

    def _not_taken(self, name: str, shape: tuple[int, ...], index: int) -> str:
        profile = self._profiles[index]
        rows, tokens = (f"{x[0]}..{x[2]}" for x in (profile.rows, profile.tokens))
        return (
            f"TensorRT refuses '{name}' of {_by(shape)} in profile {index}, which takes "
            f"{rows} rows of {tokens} tokens; it says why above\n"
            "give it rows within these, or build it again with --batch and --length to suit"
        )

    def _use(self, index: int) -> None:
        if index == self._active:
            return
        stream = self._stream
        if not self._context.set_optimization_profile_async(index, stream.cuda_stream):
            raise PrumuxError(f"TensorRT refuses profile {index}; it says why above")
        stream.synchronize()
        self._active = index


def open_plan(path: Path) -> TrtEngine:
    """Open a `.plan` file that prumux wrote, or `trtexec` with our script.

    Raises:
        MissingError: TensorRT or the GPU is missing.
        ModelError: the plan is missing, damaged, or built for another GPU or TensorRT.
    """
    return TrtEngine(path)


def inputs_of(engine: trt.ICudaEngine, flavor: Flavor = CLASSIC) -> tuple[str, ...]:
    """Names of an engine's inputs, in order."""
    trt = flavor.library()
    return tuple(x for x, mode in _tensors(engine) if mode == trt.TensorIOMode.INPUT)


def output_of(engine: trt.ICudaEngine, flavor: Flavor = CLASSIC) -> str:
    """Name of an engine's output."""
    trt = flavor.library()
    return next(x for x, mode in _tensors(engine) if mode == trt.TensorIOMode.OUTPUT)


def _tensors(engine: trt.ICudaEngine) -> list[tuple[str, trt.TensorIOMode]]:
    """Names of the inputs and outputs, each with its direction."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    return [(x, engine.get_tensor_mode(x)) for x in names]


def profiles_of(engine: trt.ICudaEngine, name: str) -> tuple[Profile, ...]:
    """The profiles of an engine, read from one of its inputs."""
    found = []
    for i in range(engine.num_optimization_profiles):
        shapes = engine.get_tensor_profile_shape(name, i)
        rows, tokens = (tuple(int(shape[axis]) for shape in shapes) for axis in (0, 1))
        found.append(Profile((rows[0], rows[1], rows[2]), (tokens[0], tokens[1], tokens[2])))
    return tuple(found)


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _no_buffer(name: str, shape: tuple[int, ...]) -> str:
    return f"TensorRT refuses the buffer of '{name}', {_by(shape)}; it says why above"


def _not_ours(plan: Path, facts: Mapping[str, Any], by: str, gpu_name: str) -> str:
    made = facts.get("versions", {}).get("tensorrt", "unknown")
    built_for = facts.get("built_for")
    device = f"for {built_for}" if built_for else f"on {facts.get('device', 'an unknown GPU')}"
    return (
        f"'{plan}' cannot be loaded by {by} on {gpu_name}\n"
        f"it was built by TensorRT {made} {device}: build it again here"
    )
