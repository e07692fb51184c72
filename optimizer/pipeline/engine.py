"""The engine protocol, and what an export writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Emitted:
    """The files that a target wrote."""

    files: tuple[str, ...]
    """Relative to the folder."""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded engine, ready to run."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C].

        `inputs`: `input_ids`, `attention_mask`[, `token_type_ids`], each int [B, T].
        """

    def describe(self) -> Mapping[str, str]:
        """Facts that a measurement states: `engine`, `version`, `device`, `threads`, ..."""


@runtime_checkable
class DefersRows(Protocol):
    """An engine that can tell which rows the second stage of its cascade answers."""

    def deferred(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """1 for each deferred row, else 0: [B]. `inputs` as in `Engine.run`."""
