"""The target protocol: what turns a model into files, and files into a running engine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .stage import Stage

if TYPE_CHECKING:
    from pathlib import Path

    from .context import Context
    from .ir import Model


@dataclass(frozen=True)
class Emitted:
    """What a target wrote."""

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
        """What a measurement must state: `engine`, `version`, `device`, `threads`, ..."""


@dataclass(frozen=True)
class Target(Stage):
    """A frozen dataclass whose fields are its options, as in a pass."""

    def check(self) -> None:
        """Look whether what `emit` and `engine` need is here, before anything long begins.

        Raises:
            MissingError: it is not; says how to get it.
        """

    @abstractmethod
    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write the model into `folder`."""

    def draft(self) -> Target:
        """This target with the options that make `emit` quick, for timing shapes."""
        return self

    @abstractmethod
    def engine(self, folder: Path, threads: int) -> Engine:
        """Load what `emit` wrote, on `threads` CPU threads where the engine uses them.

        Raises:
            MissingError: the engine's library or device is not here; says how to get it.
        """
