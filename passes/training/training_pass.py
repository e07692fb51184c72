"""The options that all training passes share: length, learning rate, rows and temperature."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self

from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass, TrainingLength

from .augment import augmented
from .loop import TrainingSchedule

EPOCHS = 3.0


@dataclass(frozen=True)
class TrainingPass(Pass):
    """A pass that trains for some epochs or minutes."""

    epochs: float | None = field(
        default=None,
        metadata={
            "help": f"passes over the rows, synthetic ones included; {EPOCHS:g} by default"
        },
    )
    minutes: float | None = field(
        default=None, metadata={"help": "length in minutes, in place of epochs"}
    )
    lr: float = field(default=3e-4, metadata={"help": "highest learning rate"})
    batch: int = field(default=64, metadata={"help": "rows per step"})
    augment: float = field(default=1.0, metadata={"help": "synthetic rows for each real one"})

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("epochs and minutes exclude each other; give one")
        self.check_above_zero("epochs", "minutes", "lr", "batch")
        self.check_not_below_zero("augment")

    def check_above_zero(self, *names: str) -> None:
        """Check options in `__post_init__`.

        Raises:
            ValueError: an option is given and not above 0.
        """
        for name in names:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")

    def check_not_below_zero(self, *names: str) -> None:
        """Check options in `__post_init__`.

        Raises:
            ValueError: an option is below 0.
        """
        for name in names:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")

    @property
    def training(self) -> TrainingLength:
        """Length of training, for the search."""
        epochs = self.length.epochs or 0.0
        return TrainingLength(self.minutes, epochs, self.augment)

    def with_minutes(self, minutes: float) -> Self:
        """Return the same pass with `minutes` in place of epochs."""
        return replace(self, epochs=None, minutes=minutes)

    @property
    def length(self) -> TrainingSchedule:
        """Length of training, for the training loop."""
        epochs = EPOCHS if self.epochs is None and self.minutes is None else self.epochs
        return TrainingSchedule(epochs, self.minutes, self.batch)

    def rows(self, ctx: Context) -> Encoded:
        """The training rows: real rows, then synthetic rows."""
        real = ctx.fit if ctx.train is None else ctx.train
        return augmented(real, ctx.fit, self.augment, ctx.seed)


@dataclass(frozen=True)
class DistillationPass(TrainingPass):
    """A pass that trains against the given model's logits and hidden states."""

    temperature: float = field(default=2.0, metadata={"help": "T of the softmax over logits"})
    hidden: float = field(
        default=1.0, metadata={"help": "weight of the error of hidden states"}
    )
    logits: float = field(default=1.0, metadata={"help": "weight of the divergence of logits"})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("temperature")
        self.check_not_below_zero("hidden", "logits")
