"""`warm-up`: train a multiplexed model to demultiplex, before it learns the task.

The model learns to return every row's own hidden states. It needs no labels. Let z be the
demultiplexed states of the last layer, and t the given model's states. The options `states`,
`mixed` and `tokens` weight the terms of the loss:

      states * mean of |z - t|^2 / |t - mean t|^2, over all positions, and over the position
               that the head reads
    + mixed  * the error of mixed rows after the layers that run on them (`mixed_error`)
    + tokens * cross-entropy of the token at every position

The last term is the token retrieval of DataMUX (Murahari et al.,
https://arxiv.org/abs/2202.09318). The logits of this cross-entropy are products of z with the
word embeddings.
MUX-PLM (https://arxiv.org/abs/2302.12441) has the same warm-up before pre-training.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.pipeline.context import Context
from prumux.passes.multiplexing.mixed_state_loss import MIXED_HELP
from prumux.passes.multiplexing.retrieval import RetrievalLearner, RetrievalWeights
from prumux.passes.training.loop import train
from prumux.passes.training.plain_text import plain_rows
from prumux.passes.training.trainable import weights_of
from prumux.passes.training.training_pass import TrainingPass


@dataclass(frozen=True)
class WarmUp(TrainingPass):
    """Train mux and demux to give back every row's own hidden states, without labels.

    Example: `mux{n=2},warm-up{epochs=5},distill`
    """

    name: ClassVar[str] = "warm-up"
    states: float = field(
        default=1.0, metadata={"help": "weight of the error of hidden states"}
    )
    tokens: float = field(default=0.0, metadata={"help": "weight of token retrieval"})
    mixed: float = field(default=1.0, metadata={"help": MIXED_HELP})
    text: str | None = field(
        default=None,
        metadata={
            "help": "a file of unlabelled text to train on, in place of the training rows"
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_below_zero("states", "tokens", "mixed")
        if not self.states + self.tokens:
            raise ValueError("states and tokens are both 0: nothing would be learnt")

    def sketch(self) -> None:
        """Return None: shapes stay as they are."""

    @property
    def weights(self) -> RetrievalWeights:
        """Weights of the terms of the loss."""
        return RetrievalWeights(self.states, self.tokens, self.mixed)

    @property
    def input_files(self) -> tuple[Path, ...]:
        """The file of text, if any."""
        return () if self.text is None else (Path(self.text),)

    def rows(self, ctx: Context) -> Encoded:
        """Real and synthetic training rows.

        If the option `text` names a file, rows cut from its texts instead.
        """
        if self.text is None:
            return super().rows(ctx)
        return plain_rows(self.text, ctx.dense, ctx.fit, ctx.seed)

    def requires(self, model: Model) -> None:
        """Refuse a model without mux, except after `mux{n=1}`: then the pass does nothing."""
        if any(x.spec.startswith("mux") for x in model.history) and not model.encoder.mux:
            return
        if model.encoder.mux is None:
            raise PassError(
                "warm-up trains mux and demux, and the model has neither\n"
                "put mux before it: mux{n=2},warm-up",
                exit_code=2,
            )
        if not EncoderModule(model).alive:
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
        """Return a model of the same sizes with trained weights, except embedding tables."""
        if model.encoder.mux is None:
            return model
        rows = self.rows(ctx)
        make = partial(RetrievalLearner, model, self.weights, self.lr, rows)
        learner = make(ctx=ctx)
        name = ctx.entry("warm-up", self, model, rows)
        facts = train(learner, rows, self.length, ctx, name, make=make)
        return replace(model, weights=weights_of(learner.module), notes=facts)
