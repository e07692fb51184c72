"""Teaches a multiplexed model to take rows apart, before it learns the task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.pipeline.context import Context
from prumux.passes.multiplexing.mixed_state_loss import MIXED_HELP
from prumux.passes.multiplexing.retrieval import Warmer
from prumux.passes.training.loop import train
from prumux.passes.training.plain_text import plain_rows
from prumux.passes.training.training_pass import Trained

from .distill import weights_of


@dataclass(frozen=True)
class WarmUp(Trained):
    """Train mux and demux to give back every row's own hidden states, without labels.

    loss = states * mean of |z - t|^2 / |t - mean t|^2 over all positions, and over the one
           that the head reads
         + mixed * the same of mixed rows between the layers, see `mixed_error`
         + tokens * cross-entropy of the token at every position

    with z the states taken apart at the end and t the dense model's. The last term is the
    token retrieval of DataMUX: scores are products of z with the word embeddings.
    """

    name: ClassVar[str] = "warm-up"
    states: float = field(default=1.0, metadata={"help": "weight of the hidden states"})
    tokens: float = field(default=0.0, metadata={"help": "weight of token retrieval"})
    mixed: float = field(default=1.0, metadata={"help": MIXED_HELP})
    text: str | None = field(
        default=None,
        metadata={"help": "a file of unlabelled text to use in place of all these rows"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_below_zero("states", "tokens", "mixed")
        if not self.states + self.tokens:
            raise ValueError("states and tokens are both 0: nothing would be learnt")

    def sketch(self) -> None:
        """Shapes stay."""

    @property
    def input_files(self) -> tuple[Path, ...]:
        """The file of text."""
        return () if self.text is None else (Path(self.text),)

    def rows(self, ctx: Context) -> Encoded:
        """The training rows and made-up ones, or pieces of the file of text."""
        if self.text is None:
            return super().rows(ctx)
        return plain_rows(self.text, ctx.dense, ctx.fit, ctx.seed)

    def requires(self, model: Model) -> None:
        """Only a multiplexed model needs it; after `mux{n=1}` there is nothing to do."""
        if any(x.spec.startswith("mux") for x in model.history) and not model.encoder.mux:
            return
        if model.encoder.mux is None:
            raise PassError(
                "warm-up trains mux and demux, and the model has neither\n"
                "put mux before it: mux{n=2},warm-up",
                exit_code=2,
            )
        if not EncoderModule(model).branches():
            raise PassError(
                "no block is left to train mux and demux with; prune less", exit_code=2
            )
        if self.tokens and model.encoder.projected:
            raise PassError(
                f"tokens={self.tokens:g} needs embeddings as wide as the states: they are "
                f"{model.encoder.embedding} of {model.encoder.hidden}; leave out tokens",
                exit_code=2,
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """The same sizes with other weights; embedding tables stay as they are."""
        if model.encoder.mux is None:
            return model
        rows = self.rows(ctx)
        make = partial(Warmer, model, self, rows)
        learner = make(ctx=ctx)
        name = ctx.entry("warm-up", self, model, rows)
        facts = train(learner, rows, self.length, ctx, name, make=make)
        return replace(model, weights=weights_of(learner.module), notes=facts)
