"""The pass protocol."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Self

from prumux.optimizer.model.model import Model

from .configurable import ConfigurableStep
from .context import Context


@dataclass(frozen=True)
class TrainingLength:
    """Length of a pass's training: `minutes`, or `epochs` over real and augmented rows."""

    minutes: float | None = None
    epochs: float = 0.0
    augment: float = 0.0
    """Augmented rows for each real row."""


@dataclass(frozen=True)
class Pass(ConfigurableStep):
    """A frozen dataclass whose fields are its options; it turns one model into another.

    A pass may assume a verified model and must leave one. Only `run` is required. A pass that
    does more than `run` says so with these members, and the core asks nothing else:

    ==================  ==================================================================
    `requires(model)`   refuses a model that the pass cannot take
    `ensures(...)`      checks the pass's own promise after `run`
    `preserves`         True if outputs stay the same, up to rounding
    `masks`             `adds`: leaves masks that a later pass cuts out; `cuts`: cuts them out
    `last_shape`        True if no pass takes the result but one that makes two models of it
    `slots`             rows that share a forward pass afterwards; 0 = unchanged
    `training`          how long it trains; None = it does not train
    `with_minutes(m)`   the same pass, trained for m minutes
    `sketch()`          a quick pass that leaves about the same shapes; None = shapes stay
    `measures`          True if it times shapes on the target
    `input_files`       files that the result depends on
    `choices(model)`    instances that a search tries
    `check_given(m)`    refuses a given model before anything is built
    `second_stage`      passes of a second model that the result holds; None = one model
    `last`              the reason that no pass may follow; "" = passes may
    ==================  ==================================================================
    """

    preserves: ClassVar[bool] = False
    masks: ClassVar[Literal["keeps", "adds", "cuts"]] = "keeps"
    last_shape: ClassVar[bool] = False
    last: ClassVar[str] = ""
    """The reason that no pass may follow on this one; "" = passes may."""

    @property
    def slots(self) -> int:
        """Rows that share a forward pass after this pass; 0 = unchanged."""
        return 0

    @property
    def training(self) -> TrainingLength | None:
        """Length of this pass's training; None = it does not train.

        The evaluator stores the result of each pass that trains, so that pipelines that begin
        alike train once.
        """
        return None

    @property
    def measures(self) -> bool:
        """True if this pass times shapes on `ctx.target`."""
        return False

    @property
    def input_files(self) -> tuple[Path, ...]:
        """Files that the result depends on."""
        return ()

    @property
    def second_stage(self) -> tuple[Pass, ...] | None:
        """Passes that make a second model of the given one; None = the result is one model."""
        return None

    def check_given(self, model: Model) -> None:
        """Refuse a given model that this pass can never take, before anything is built.

        Raises:
            PassError: the message says the reason.
        """
        del model

    def with_minutes(self, minutes: float) -> Self:
        """This pass, trained for so many minutes; itself if it does not train."""
        del minutes
        return self

    def sketch(self) -> Pass | None:
        """A pass that takes seconds and leaves about the same shapes; None = shapes stay."""
        return self

    def requires(self, model: Model) -> None:
        """Refuse a model that this pass cannot take.

        Raises:
            PassError: the message says the remedy.
        """

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> Model:
        """The new model, or `model` itself if there is nothing to do. Changes no tensor.

        Randomness comes from `ctx.generator(self)` only. `notes` of the result go into the
        receipt.
        """

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        """Check what this pass promises beyond a verified model.

        Raises:
            GateError: the message gives both numbers.
        """

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Instances that a search tries on `model`; none by default."""
        del model
        return ()
