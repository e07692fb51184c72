"""The engine protocol, and the files of an export."""

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
    """Paths relative to the folder."""
    notes: Mapping[str, Any] = field(default_factory=dict)


class Engine(Protocol):
    """A loaded engine, ready to run."""

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C].

        Args:
            inputs: `input_ids`, `attention_mask` and, if the model has token types,
                `token_type_ids`; each int [B, T].
        """

    def describe(self) -> Mapping[str, str]:
        """Facts for measurements: `engine`, `version`, `device`, `threads`, ..."""


@runtime_checkable
class DefersRows(Protocol):
    """An engine that reports the rows that the second stage of its cascade answers."""

    def deferred(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """1 for each deferred row and 0 for others, [B]. For `inputs` see `Engine.run`."""
