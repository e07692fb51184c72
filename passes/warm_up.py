"""Teaches a multiplexed model to take rows apart, before it learns the task."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.context import Context
from prumux.optimizer.encode import Batch, Encoded, groups_of
from prumux.optimizer.errors import PassError
from prumux.optimizer.ir import Model
from prumux.optimizer.module import EncoderModule
from prumux.optimizer.precision import autocast
from prumux.optimizer.store import key

from .distill import check_rows, groups, trainable, weights_of
from .losses import state_parts
from .plain_text import plain_rows
from .teacher import Seen, Teacher, layer_pairs, observe, teacher
from .trained import Trained
from .training import train

BATCH = 64


@dataclass(frozen=True)
class WarmUp(Trained):
    """Train mux and demux to give back every row's own hidden states, without labels.

    loss = states * mean of |z - t|^2 / |t - mean t|^2 over all positions, and over the one
           that the head reads
         + tokens * cross-entropy of the token at every position

    with z the states taken apart at the end and t the dense model's. The second term is the
    token retrieval of DataMUX: scores are products of z with the word embeddings.
    """

    name: ClassVar[str] = "warm-up"
    shapes: ClassVar[bool] = False
    states: float = field(default=1.0, metadata={"help": "weight of the hidden states"})
    tokens: float = field(default=0.0, metadata={"help": "weight of token retrieval"})
    text: str | None = field(
        default=None,
        metadata={"help": "a file of unlabelled text to use in place of the training rows"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("states", "tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not self.states + self.tokens:
            raise ValueError("states and tokens are both 0: nothing would be learnt")

    @property
    def reads(self) -> tuple[Path, ...]:
        """The file of text."""
        return () if self.text is None else (Path(self.text),)

    def requires(self, model: Model) -> None:
        """Only a multiplexed model needs it."""
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
        from prumux.optimizer.source import digest

        rows = ctx.fit if ctx.train is None else ctx.train
        if self.text is not None:
            rows = plain_rows(self.text, ctx.dense, rows, ctx.seed)
        learner = Warmer(model, self, rows, ctx)
        given = digest(model.weights, model.task, model.encoder)
        about = (self, given, model.masks.key(), rows.ids, ctx.seed, torch.__version__)
        name = "warm-up-" + key(*about)
        facts = train(learner, rows, self.length, ctx, name)
        return replace(model, weights=weights_of(learner.module), notes=facts)


class Warmer:
    """A multiplexed model, and how far its states are from the dense ones."""

    def __init__(self, model: Model, options: WarmUp, rows: Encoded, ctx: Context) -> None:
        self.options, self.device = options, ctx.device
        wide = replace(model, encoder=replace(model.encoder, pool_early=False))
        self.module = trainable(wide, ctx.device)
        self.slots = model.encoder.slots
        self.dims = model.living_hidden
        sizes = model.masks.sizes(model.encoder)
        self.pairs = layer_pairs(sizes, ctx.dense.encoder)
        layers = tuple(self.pairs.values())
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device, everywhere=True)
        self.checks = check_rows(rows, ctx)
        self.judge = Teacher(self.teacher.module, layers, ctx.device)

    def groups(self) -> list[dict[str, Any]]:
        """All but the embedding tables; mux and demux faster than the rest."""
        return groups(self.module, self.options.lr)

    def loss(self, batch: Batch, share: float) -> Tensor:
        """See `WarmUp`."""
        del share
        states, tokens = self._parts(batch, self.teacher)
        total = self.options.tokens * tokens
        if states:
            off = [error / (variance + 1e-6) for error, variance in states]
            total = total + self.options.states * torch.stack(off).mean()
        return total

    def harm(self) -> float:
        """The same on the select rows, with errors and variances summed over all of them."""
        tokens, count, off = 0.0, 0, torch.zeros(len(self.pairs) + 1, 2)
        with torch.no_grad(), autocast(self.device):
            for batch in groups_of(self.checks, BATCH, self.slots):
                rows = len(batch.rows)
                states, lost = self._parts(batch, self.judge)
                tokens, count = tokens + float(lost) * rows, count + rows
                for i, (error, variance) in enumerate(states):
                    off[i] += rows * torch.stack([error, variance]).cpu()
        each = off[: len(self.pairs) + self.module.sizes.pooled]
        errors = float((each[:, 0] / (each[:, 1] + 1e-6)).mean())
        return self.options.states * errors + self.options.tokens * tokens / count

    def _parts(
        self, batch: Batch, teacher: Teacher
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Errors and variances of the compared layers' states, and of the last where the head
        reads; and the cross-entropy of the tokens."""
        found = observe(self.module, batch, self.device, everywhere=True)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        states = self._off(found, teacher.teach(batch), real) if self.options.states else []
        if not self.options.tokens:
            return states, torch.zeros((), device=self.device)
        words = self.module.get_parameter("embeddings.word.weight")
        ids = torch.as_tensor(batch.input_ids).to(self.device)
        scores = found.states[max(self.pairs)][real] @ words.T
        return states, F.cross_entropy(scores.float(), ids[real])

    def _off(self, found: Seen, aim: Seen, real: Tensor) -> list[tuple[Tensor, Tensor]]:
        here, there = self.dims
        states = [
            (found.states[i][..., here], aim.states[j][..., there])
            for i, j in self.pairs.items()
        ]
        if self.module.sizes.pooled:
            states.append((states[-1][0][:, :1], states[-1][1][:, :1]))
        return [state_parts(own, other, real) for own, other in states]
