"""The Triton model in front of an engine. It runs rows of concurrent requests together.

Rows are sorted by length. A multiplexed engine gets whole groups of rows. Every engine gets
runs of rows of similar length, padded to the longest row of the run. Triton's own batcher
only joins requests of equal length. In a cascade of two engines the packer defers rows: the
second engine answers those of which the first one is not sure.

`repository.py` copies this file into a model repository as `model.py`, with
`optimizer/model/row_groups.py` beside it. The rest of prumux is not installed there, so this
file imports only the standard library, numpy and Triton's `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.row_groups import RowLogits, answered, deferring, padded

IDS, MASK, TYPES = INPUTS = "input_ids", "attention_mask", "token_type_ids"
TENANT = "tenant"
RUN_TOKENS = 512
"""Number of tokens whose run takes about as long as the start of a run."""
Ints = NDArray[np.int64]
Run = Callable[[Mapping[str, Ints]], NDArray[np.float32]]
"""The engine. It takes inputs [B, T] of whole groups; returns logits [B, C] or [B, T, C]."""


class RequestError(Exception):
    """A request that cannot be answered. Other requests are not affected."""


class EngineError(Exception):
    """The engine could not run a batch."""


class CancelledError(Exception):
    """A request that does not run, because its client no longer waits for the answer."""


@dataclass(frozen=True)
class EngineLimits:
    """Limits of the inputs that the engine accepts."""

    slots: int
    """Number of rows that share a forward pass."""
    rows: int
    """Largest number of rows of one run: a multiple of `slots`."""
    tokens: int
    """Largest number of tokens of a row."""
    vocab: int
    token_types: int
    """Number of token types; 0 = the engine has no input `token_type_ids`."""
    pad_id: int
    run_tokens: int = RUN_TOKENS
    """Rows run in two parts if this saves more padded tokens than `run_tokens`."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the engine's inputs, in order."""
        return INPUTS if self.token_types else INPUTS[:2]


@dataclass(frozen=True, eq=False)
class TritonRequest:
    """The rows of one request."""

    inputs: Mapping[str, Ints]
    """Arrays [rows, T] by name."""
    tenants: tuple[Hashable, ...] | None = None
    """The tenant of each row; None = no tenants. Rows without tenant are grouped together."""
    cancelled: bool = False
    """True if the client no longer waits for the answer."""

    def __len__(self) -> int:
        return len(self.inputs[IDS])

    @property
    def lengths(self) -> Ints:
        """Position after the last real token of each row, at least 1: [rows]."""
        real = self.inputs[MASK] != 0
        last = np.where(real, np.arange(1, real.shape[1] + 1), 1)
        found: Ints = last.max(axis=1)
        return found


def answer(run: Run, requests: Sequence[TritonRequest], limits: EngineLimits) -> list[Any]:
    """Compute the logits of each request, [rows, C] or [rows, T, C], or return its error.

    Rows of all requests are grouped by length. Rows of two tenants never share a forward pass.
    If the engine fails, each request runs again alone: only a request that the engine refuses
    then fails.
    """
    found: list[Any] = [_fault(x, limits) for x in requests]
    good = [i for i, fault in enumerate(found) if fault is None]
    try:
        each = _run_grouped(run, [requests[i] for i in good], limits)
    except EngineError:
        each = [_alone(run, requests[i], limits) for i in good]
    for i, logits in zip(good, each, strict=True):
        found[i] = logits
    return found


def _alone(run: Run, request: TritonRequest, limits: EngineLimits) -> Any:
    try:
        return _run_grouped(run, [request], limits)[0]
    except EngineError as error:
        return error


def _run_grouped(
    run: Run, requests: Sequence[TritonRequest], limits: EngineLimits
) -> list[NDArray[np.float32]]:
    """Compute the logits of each request, with rows grouped over all requests."""
    lengths = [x.lengths for x in requests]
    rows = {
        name: [
            row[:length]
            for x, own in zip(requests, lengths, strict=True)
            for row, length in zip(x.inputs[name], own, strict=True)
        ]
        for name in limits.names
    }
    fills = {IDS: limits.pad_id, MASK: 0, TYPES: 0}
    owners = [owner for x in requests for owner in x.tenants or (None,) * len(x)]
    all_lengths = np.concatenate([*lengths, np.zeros(0, np.int64)])

    def run_rows(index: Ints) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = []
        longest = all_lengths[index].reshape(-1, limits.slots).max(axis=1)
        for start, end in parts(longest, limits.run_tokens / limits.slots):
            part = index[start * limits.slots : end * limits.slots]
            inputs = {
                name: padded([each[i] for i in part], int(longest[end - 1]), fills[name])
                for name, each in rows.items()
            }
            found.extend(run(inputs))
        return found

    logits = answered(run_rows, all_lengths, limits.slots, limits.rows, tenants=owners)
    ends = np.cumsum([len(x) for x in requests]).tolist()
    return [
        _shaped(logits[end - len(x) : end], x) for x, end in zip(requests, ends, strict=True)
    ]


def parts(lengths: Ints, tokens: float) -> list[tuple[int, int]]:
    """Split groups, sorted by length, into ranges that run together.

    Groups are padded to the longest group of their range. A range is split at the point that
    saves most padding, if this saves more than `tokens` tokens per slot.

    Example:
        >>> parts(np.array([4, 5, 90, 100]), tokens=64)
        [(0, 2), (2, 4)]
    """
    found: list[tuple[int, int]] = []
    left = [(0, len(lengths))]
    while left:
        start, end = left.pop()
        # Splitting before group i pads the groups from `start` to i to the length of i - 1.
        saved = (lengths[end - 1] - lengths[start : end - 1]) * np.arange(1, end - start)
        if len(saved) and saved.max() > tokens:
            middle = start + 1 + int(saved.argmax())
            left += [(middle, end), (start, middle)]
        else:
            found.append((start, end))
    return found


def _shaped(logits: RowLogits, request: TritonRequest) -> NDArray[np.float32]:
    """Make one array. For token tasks it is as long as the request, with 0 at padding."""
    if isinstance(logits, np.ndarray):
        return logits
    labels = logits[0].shape[1]
    found = np.zeros((*request.inputs[IDS].shape, labels), np.float32)
    for place, row in zip(found, logits, strict=True):
        place[: len(row)] = row
    return found


def _fault(request: TritonRequest, limits: EngineLimits) -> Exception | None:
    """Check a request: return the error if it cannot run, else None.

    Requests are checked before the run, because a bad request would fail all requests of the
    run.
    """
    if request.cancelled:
        return CancelledError("the client cancelled the request")
    shapes = {name: x.shape for name, x in request.inputs.items()}
    if len(set(shapes.values())) > 1 or len(shapes[IDS]) != 2 or 0 in shapes[IDS]:
        return RequestError(f"inputs must be [rows, tokens], all alike; given: {shapes}")
    if request.tenants is not None and len(request.tenants) != len(request):
        return RequestError(
            f"{len(request.tenants)} tenants of {len(request)} rows: give one a row, "
            f"'{TENANT}' [{len(request)}, 1]"
        )
    longest = int(request.lengths.max())
    if longest > limits.tokens:
        return RequestError(
            f"a row has {longest} tokens, the model takes {limits.tokens}: "
            f"tokenise with truncation=True, max_length={limits.tokens}"
        )
    for name, size in ((IDS, limits.vocab), (TYPES, limits.token_types)):
        if name in limits.names:
            low, high = int(request.inputs[name].min()), int(request.inputs[name].max())
            if low < 0 or high >= size:
                return RequestError(
                    f"{name} go from {low} to {high}, the model knows 0..{size - 1}: "
                    "use the tokenizer that was saved with it"
                )
    return None


class TritonPythonModel:
    """The class that Triton's Python backend loads."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the parameters of `config.pbtxt`."""
        config = json.loads(args["model_config"])
        parameters = {k: v["string_value"] for k, v in config["parameters"].items()}
        self.run: Run = partial(self._run, parameters.pop("engine"))
        if "second" in parameters:
            second = partial(self._run, parameters.pop("second"))
            rule = (float(parameters.pop(x)) for x in ("threshold", "max_share"))
            self.run = deferring(self.run, second, *rule)
        self.output = str(config["output"][0]["name"])
        self.limits = EngineLimits(**{name: int(value) for name, value in parameters.items()})

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response for each request, in order."""
        import triton_python_backend_utils as pb_utils

        found = answer(self.run, [self._read(x) for x in requests], self.limits)
        return [
            pb_utils.InferenceResponse([], error=_error(x))
            if isinstance(x, Exception)
            else pb_utils.InferenceResponse([pb_utils.Tensor(self.output, x)])
            for x in found
        ]

    def _read(self, request: Any) -> TritonRequest:
        import triton_python_backend_utils as pb_utils

        tensor = pb_utils.get_input_tensor_by_name
        inputs = {name: _values(tensor(request, name)) for name in self.limits.names}
        tenant = tensor(request, TENANT)
        tenants = None if tenant is None else tuple(tenant.as_numpy().reshape(-1).tolist())
        return TritonRequest(inputs, tenants, request.is_cancelled())

    def _run(self, engine: str, inputs: Mapping[str, Ints]) -> NDArray[np.float32]:
        import triton_python_backend_utils as pb_utils

        response = pb_utils.InferenceRequest(
            model_name=engine,
            requested_output_names=[self.output],
            inputs=[pb_utils.Tensor(name, x) for name, x in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise EngineError(response.error().message())
        logits = pb_utils.get_output_tensor_by_name(response, self.output)
        found: NDArray[np.float32] = _values(logits)
        return found


def _error(error: Exception) -> Any:
    """Convert an error to Triton's own error. Its code decides the client's status."""
    import triton_python_backend_utils as pb_utils

    codes = {
        RequestError: pb_utils.TritonError.INVALID_ARG,
        CancelledError: pb_utils.TritonError.CANCELLED,
    }
    code = codes.get(type(error), pb_utils.TritonError.INTERNAL)
    return pb_utils.TritonError(str(error), code)


def _values(tensor: Any) -> Any:
    """The values of a tensor.

    Raises:
        RuntimeError: the server's Python backend was built for another numpy. Then all
            elements of its arrays have the same address.
    """
    values = tensor.as_numpy()
    if values.size > 1 and not any(values.strides):
        raise RuntimeError(
            f"this server's Python backend misreads arrays of numpy {np.__version__}: "
            "give it numpy 1 (pip install 'numpy<2')"
        )
    return values
