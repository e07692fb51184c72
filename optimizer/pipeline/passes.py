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
    """Base of passes: turns one model into another. The dataclass's fields are its options.

    A pass may assume that the model was verified, and must return a model that `verify`
    accepts. Only `run` is required. These members describe more special passes:

    ==================  ==================================================================
    `requires(model)`   refuses a model that the pass cannot take
    `ensures(...)`      checks the pass's own promise after `run`
    `preserves`         True if outputs stay the same, up to rounding
    `masks`             `adds`: leaves masks that a later pass cuts out; `cuts`: cuts them out
    `slots`             rows that share a forward pass afterwards; 0 = unchanged
    `training`          length of its training; None = it does not train
    `with_minutes(m)`   the same pass, trained for m minutes
    `sketch()`          a quick pass that leaves about the same shapes; None = shapes stay
    `measures`          True if it times shapes on the target
    `input_files`       files that the result depends on
    `choices(model)`    instances that a search tries
    `check_given(m)`    refuses a given model before anything is built
    `second_stage`      passes of the result's second model; None = one model
    `last`              the reason that no pass may follow; "" = passes may follow
    `before_second`     True if a pass with a `second_stage` may follow all the same
    ==================  ==================================================================
    """

    preserves: ClassVar[bool] = False
    masks: ClassVar[Literal["keeps", "adds", "cuts"]] = "keeps"
    last: ClassVar[str] = ""
    """The reason that no pass may follow this one; "" = passes may follow."""
    before_second: ClassVar[bool] = False
    """True if a pass with a `second_stage` may follow, in spite of `last`."""

    @property
    def slots(self) -> int:
        """Number of rows that share a forward pass after this pass; 0 = unchanged."""
        return 0

    @property
    def training(self) -> TrainingLength | None:
        """Length of this pass's training; None = it does not train.

        The model store keeps the result of each pass that trains. Pipelines with the same
        first passes therefore share the training.
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
        """Passes that make a second model from the given model; None = no second model."""
        return None

    def check_given(self, model: Model) -> None:
        """Refuse a given model that this pass can never take, before anything is built.

        Raises:
            PassError: the pass does not fit the model; the message says the reason.
        """
        del model

    def with_minutes(self, minutes: float) -> Self:
        """This pass, trained for this many minutes; unchanged if it does not train."""
        del minutes
        return self

    def sketch(self) -> Pass | None:
        """A pass that takes seconds and leaves about the same shapes; None = shapes stay."""
        return self

    def requires(self, model: Model) -> None:
        """Refuse a model that this pass cannot take.

        Raises:
            PassError: the pass does not fit the model; the message says the remedy.
        """

    @abstractmethod
    def run(self, model: Model, ctx: Context) -> Model:
        """Return the new model, or `model` itself if there is nothing to do.

        The method must not change tensors of `model`, and must draw random numbers from
        `ctx.generator(self)` only. `notes` of the result go into the receipt.
        """

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        """Check the promises of this pass after `run`.

        Raises:
            GateError: a promise is broken; the message gives both numbers.
        """

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Instances that a search tries on `model`; by default there are none."""
        del model
        return ()
