"""The Triton model in front of a multiplexed engine: mixes rows of requests that meet.

`triton.py` copies this file into a bundle as `model.py`, with `optimizer/slots.py` beside it.
Nothing else of prumux is there, so it needs the standard library, numpy and Triton's own
`triton_python_backend_utils` only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.row_groups import answered, padded

IDS, MASK, TYPES = INPUTS = "input_ids", "attention_mask", "token_type_ids"
LOGITS, TENANT = "logits", "tenant"
Ints = NDArray[np.int64]
Run = Callable[[Mapping[str, Ints]], NDArray[np.float32]]
"""The engine: inputs [B, T], whole groups, to logits [B, C] or [B, T, C]."""


class RequestError(Exception):
    """A request that cannot be answered; no other one is hurt by it."""


class EngineError(Exception):
    """The engine could not run a batch."""


@dataclass(frozen=True)
class Limits:
    """What the engine takes."""

    slots: int
    """Rows that it mixes into one."""
    rows: int
    """Most rows of one run, a multiple of `slots`."""
    tokens: int
    """Most tokens of a row."""
    vocab: int
    token_types: int
    """0 where it takes no `token_type_ids`."""
    pad_id: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the engine's inputs, in order."""
        return INPUTS if self.token_types else INPUTS[:2]


@dataclass(frozen=True, eq=False)
class Asked:
    """The rows of one request."""

    inputs: Mapping[str, Ints]
    """[rows, T] each."""
    tenants: tuple[Hashable, ...] | None = None
    """Per row, whose it is; None = nobody's, which is an owner like any other."""

    def __len__(self) -> int:
        return len(self.inputs[IDS])

    @property
    def lengths(self) -> Ints:
        """Position after the last real token of each row, at least 1: [rows]."""
        real = self.inputs[MASK] != 0
        last = np.where(real, np.arange(1, real.shape[1] + 1), 1)
        found: Ints = last.max(axis=1)
        return found


def answer(run: Run, asked: Sequence[Asked], limits: Limits) -> list[Any]:
    """Per request its logits, [rows, C] or [rows, T, C], or the error that it gets.

    Rows of all requests are mixed together, those of like length with each other and never
    those of two tenants. Where the engine fails, every request is run once more by itself, so
    that one which the engine cannot take fails alone.
    """
    found: list[Any] = [_fault(x, limits) for x in asked]
    good = [i for i, fault in enumerate(found) if fault is None]
    try:
        each = _mixed(run, [asked[i] for i in good], limits)
    except EngineError:
        each = [_alone(run, asked[i], limits) for i in good]
    for i, logits in zip(good, each, strict=True):
        found[i] = logits
    return found


def _alone(run: Run, asked: Asked, limits: Limits) -> Any:
    try:
        return _mixed(run, [asked], limits)[0]
    except EngineError as error:
        return error


def _mixed(run: Run, asked: Sequence[Asked], limits: Limits) -> list[NDArray[np.float32]]:
    """Logits of each request."""
    lengths = [x.lengths for x in asked]
    rows = {
        name: [
            row[:length]
            for x, own in zip(asked, lengths, strict=True)
            for row, length in zip(x.inputs[name], own, strict=True)
        ]
        for name in limits.names
    }
    fills = {IDS: limits.pad_id, MASK: 0, TYPES: 0}
    owners = [owner for x in asked for owner in x.tenants or (None,) * len(x)]
    all_lengths = np.concatenate([*lengths, np.zeros(0, np.int64)])

    def run_rows(index: Ints) -> NDArray[np.float32]:
        longest = int(all_lengths[index].max())
        return run(
            {
                name: padded([each[i] for i in index], longest, fills[name])
                for name, each in rows.items()
            }
        )

    logits = answered(run_rows, all_lengths, limits.slots, limits.rows, tenants=owners)
    ends = np.cumsum([len(x) for x in asked]).tolist()
    return [_shaped(logits[end - len(x) : end], x) for x, end in zip(asked, ends, strict=True)]


def _shaped(logits: Sequence[NDArray[np.float32]], asked: Asked) -> NDArray[np.float32]:
    """One array; for token tasks as wide as the request, 0 after a row's last token."""
    if logits[0].ndim == 1:
        return np.stack(logits)
    labels = logits[0].shape[1]
    found = np.zeros((*asked.inputs[IDS].shape, labels), np.float32)
    for place, row in zip(found, logits, strict=True):
        place[: len(row)] = row
    return found


def _fault(asked: Asked, limits: Limits) -> RequestError | None:
    """Why this request cannot be run: checked first, since it shares a run with others."""
    shapes = {name: x.shape for name, x in asked.inputs.items()}
    if len(set(shapes.values())) > 1 or len(shapes[IDS]) != 2 or 0 in shapes[IDS]:
        return RequestError(f"inputs must be [rows, tokens], all alike; given: {shapes}")
    if asked.tenants is not None and len(asked.tenants) != len(asked):
        return RequestError(
            f"{len(asked.tenants)} tenants of {len(asked)} rows: give one a row, "
            f"'{TENANT}' [{len(asked)}, 1]"
        )
    longest = int(asked.lengths.max())
    if longest > limits.tokens:
        return RequestError(
            f"a row has {longest} tokens, the model takes {limits.tokens}: "
            f"tokenise with truncation=True, max_length={limits.tokens}"
        )
    for name, size in ((IDS, limits.vocab), (TYPES, limits.token_types)):
        if name in limits.names:
            low, high = int(asked.inputs[name].min()), int(asked.inputs[name].max())
            if low < 0 or high >= size:
                return RequestError(
                    f"{name} go from {low} to {high}, the model knows 0..{size - 1}: "
                    "use the tokenizer that was saved with it"
                )
    return None


class TritonPythonModel:
    """What Triton's Python backend looks for."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the parameters of `config.pbtxt`."""
        config = json.loads(args["model_config"])
        told = {k: v["string_value"] for k, v in config["parameters"].items()}
        self.engine = told.pop("engine")
        self.limits = Limits(**{name: int(value) for name, value in told.items()})

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response a request, in their order."""
        import triton_python_backend_utils as pb_utils

        asked = [self._asked(x) for x in requests]
        found = answer(self._run, asked, self.limits)
        return [
            pb_utils.InferenceResponse([], error=pb_utils.TritonError(str(x)))
            if isinstance(x, Exception)
            else pb_utils.InferenceResponse([pb_utils.Tensor(LOGITS, x)])
            for x in found
        ]

    def _asked(self, request: Any) -> Asked:
        import triton_python_backend_utils as pb_utils

        tensor = pb_utils.get_input_tensor_by_name
        inputs = {name: tensor(request, name).as_numpy() for name in self.limits.names}
        tenant = tensor(request, TENANT)
        if tenant is None:
            return Asked(inputs)
        return Asked(inputs, tuple(tenant.as_numpy().reshape(-1).tolist()))

    def _run(self, inputs: Mapping[str, Ints]) -> NDArray[np.float32]:
        import triton_python_backend_utils as pb_utils

        response = pb_utils.InferenceRequest(
            model_name=self.engine,
            requested_output_names=[LOGITS],
            inputs=[pb_utils.Tensor(name, x) for name, x in inputs.items()],
            preferred_memory=pb_utils.PreferredMemory(pb_utils.TRITONSERVER_MEMORY_CPU, 0),
        ).exec()
        if response.has_error():
            raise EngineError(response.error().message())
        logits = pb_utils.get_output_tensor_by_name(response, LOGITS)
        found: NDArray[np.float32] = logits.as_numpy()
        return found
