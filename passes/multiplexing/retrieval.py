"""The learner of `warm-up`: it trains a multiplexed model to return every row's states."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.data.tokenize import Batch, Encoded, groups_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.layer_matching import layer_pairs
from prumux.passes.training.losses import relative, state_parts
from prumux.passes.training.teacher import ModelOutputs, Teacher, observe, teacher
from prumux.passes.training.trainable import parameter_groups, trainable, validation_rows

from .mixed_state_loss import MixedStateLoss

BATCH = 64


@dataclass(frozen=True)
class RetrievalWeights:
    """Weights of the terms of the loss: options of `warm-up`."""

    states: float
    tokens: float
    mixed: float


class RetrievalLearner:
    """A multiplexed model, and the error of its states relative to the given model's."""

    def __init__(
        self, model: Model, weights: RetrievalWeights, lr: float, rows: Encoded, ctx: Context
    ) -> None:
        self.weights, self.lr, self.device = weights, lr, ctx.device
        wide = replace(model, encoder=replace(model.encoder, pool_early=False))
        self.module = trainable(wide, ctx.device)
        self.slots = model.encoder.slots
        self.dims = model.living_hidden
        sizes = model.masks.sizes(model.encoder)
        self.pairs = layer_pairs(sizes, ctx.dense.encoder)
        self.mixed_loss = MixedStateLoss.of(sizes, ctx.dense.encoder, self.dims, weights.mixed)
        layers = tuple({*self.pairs.values(), *self.mixed_loss.pairs.values()})
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device, everywhere=True)
        self.validation_rows = validation_rows(rows, ctx)
        self.validation_teacher = Teacher(
            self.teacher.module, tuple(self.pairs.values()), ctx.device
        )

    def groups(self) -> list[dict[str, Any]]:
        """All weights except embedding tables; mux and demux have a higher learning rate."""
        return parameter_groups(self.module, self.lr)

    def loss(self, batch: Batch, progress: float, parallel: DataParallel = ALONE) -> Tensor:
        """The loss that the docstring of `warm_up.py` defines."""
        del progress
        found, aim, real = self._outputs(batch, self.teacher)
        states, tokens = self._parts(batch, found, aim, real, parallel=parallel)
        mixed = self.mixed_loss.error(self.module, found, aim, real, parallel=parallel)
        total = self.weights.tokens * tokens + self.weights.mixed * mixed
        if states:
            off = torch.stack([relative(*parts) for parts in states])
            total = total + self.weights.states * off.mean()
        return total

    def validation_loss(self) -> float:
        """The loss on the select rows, without its `mixed` term.

        Errors and variances are first summed over all rows, and then divided.
        """
        tokens, count, off = 0.0, 0, torch.zeros(len(self.pairs) + 1, 2)
        with torch.no_grad(), autocast(self.device):
            for batch in groups_of(self.validation_rows, BATCH, self.slots):
                rows = len(batch.rows)
                states, lost = self._parts(
                    batch, *self._outputs(batch, self.validation_teacher)
                )
                tokens, count = tokens + float(lost) * rows, count + rows
                for i, (error, variance) in enumerate(states):
                    off[i] += rows * torch.stack([error, variance]).cpu()
        each = off[: len(self.pairs) + self.module.sizes.pooled]
        errors = float(relative(each[:, 0], each[:, 1]).mean())
        return self.weights.states * errors + self.weights.tokens * tokens / count

    def _outputs(
        self, batch: Batch, teacher: Teacher
    ) -> tuple[ModelOutputs, ModelOutputs, Tensor]:
        """Both models' outputs for a batch, and bool [B, T], True on real tokens."""
        found = observe(self.module, batch, self.device, everywhere=True)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        return found, teacher.teach(batch), real

    def _parts(
        self,
        batch: Batch,
        found: ModelOutputs,
        aim: ModelOutputs,
        real: Tensor,
        *,
        parallel: DataParallel = ALONE,
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Errors and variances of states, and the cross-entropy of the tokens.

        These are the states of all compared layers, and the state of the last layer at the
        position that the head reads.
        """
        states = self._state_parts(found, aim, real, parallel) if self.weights.states else []
        if not self.weights.tokens:
            return states, torch.zeros((), device=self.device)
        words = self.module.get_parameter("embeddings.word.weight")
        ids = torch.as_tensor(batch.input_ids).to(self.device)
        scores = found.states[max(self.pairs)][real] @ words.T
        return states, parallel.mean(F.cross_entropy(scores.float(), ids[real]), len(scores))

    def _state_parts(
        self, found: ModelOutputs, aim: ModelOutputs, real: Tensor, parallel: DataParallel
    ) -> list[tuple[Tensor, Tensor]]:
        here, there = self.dims
        states = [
            (found.states[i][..., here], aim.states[j][..., there])
            for i, j in self.pairs.items()
        ]
        if self.module.sizes.pooled:
            states.append((states[-1][0][:, :1], states[-1][1][:, :1]))
        return [state_parts(own, other, real, parallel) for own, other in states]
