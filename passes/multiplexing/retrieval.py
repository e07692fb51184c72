"""A multiplexed model that learns to take rows apart: what `warm-up` hands to the loop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.data.tokenize import Batch, Encoded, groups_of
from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.context import Context
from prumux.passes.distill import check_rows, groups, trainable
from prumux.passes.training.layer_matching import layer_pairs
from prumux.passes.training.losses import relative, state_parts
from prumux.passes.training.teacher import Seen, Teacher, observe, teacher
from prumux.passes.training.team import ALONE, Team

from .mixed_state_loss import Between

if TYPE_CHECKING:
    from prumux.passes.warm_up import WarmUp

BATCH = 64


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
        self.between = Between.of(sizes, ctx.dense.encoder, self.dims, options.mixed)
        layers = tuple({*self.pairs.values(), *self.between.pairs.values()})
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device, everywhere=True)
        self.checks = check_rows(rows, ctx)
        self.judge = Teacher(self.teacher.module, tuple(self.pairs.values()), ctx.device)

    def groups(self) -> list[dict[str, Any]]:
        """All but the embedding tables; mux and demux faster than the rest."""
        return groups(self.module, self.options.lr)

    def loss(self, batch: Batch, share: float, team: Team = ALONE) -> Tensor:
        """See `WarmUp`."""
        del share
        found, aim, real = self._seen(batch, self.teacher)
        states, tokens = self._parts(batch, found, aim, real, team=team)
        between = self.between.error(self.module, found, aim, real, team=team)
        total = self.options.tokens * tokens + self.options.mixed * between
        if states:
            off = torch.stack([relative(*parts) for parts in states])
            total = total + self.options.states * off.mean()
        return total

    def harm(self) -> float:
        """The same on the select rows, with errors and variances summed over all of them."""
        tokens, count, off = 0.0, 0, torch.zeros(len(self.pairs) + 1, 2)
        with torch.no_grad(), autocast(self.device):
            for batch in groups_of(self.checks, BATCH, self.slots):
                rows = len(batch.rows)
                states, lost = self._parts(batch, *self._seen(batch, self.judge))
                tokens, count = tokens + float(lost) * rows, count + rows
                for i, (error, variance) in enumerate(states):
                    off[i] += rows * torch.stack([error, variance]).cpu()
        each = off[: len(self.pairs) + self.module.sizes.pooled]
        errors = float(relative(each[:, 0], each[:, 1]).mean())
        return self.options.states * errors + self.options.tokens * tokens / count

    def _seen(self, batch: Batch, teacher: Teacher) -> tuple[Seen, Seen, Tensor]:
        """What both models say of a batch, and where there are tokens, bool [B, T]."""
        found = observe(self.module, batch, self.device, everywhere=True)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        return found, teacher.teach(batch), real

    def _parts(
        self, batch: Batch, found: Seen, aim: Seen, real: Tensor, *, team: Team = ALONE
    ) -> tuple[list[tuple[Tensor, Tensor]], Tensor]:
        """Errors and variances of the compared layers' states, and of the last where the head
        reads; and the cross-entropy of the tokens."""
        states = self._off(found, aim, real, team) if self.options.states else []
        if not self.options.tokens:
            return states, torch.zeros((), device=self.device)
        words = self.module.get_parameter("embeddings.word.weight")
        ids = torch.as_tensor(batch.input_ids).to(self.device)
        scores = found.states[max(self.pairs)][real] @ words.T
        return states, team.mean(F.cross_entropy(scores.float(), ids[real]), len(scores))

    def _off(
        self, found: Seen, aim: Seen, real: Tensor, team: Team
    ) -> list[tuple[Tensor, Tensor]]:
        here, there = self.dims
        states = [
            (found.states[i][..., here], aim.states[j][..., there])
            for i, j in self.pairs.items()
        ]
        if self.module.sizes.pooled:
            states.append((states[-1][0][:, :1], states[-1][1][:, :1]))
        return [state_parts(own, other, real, team) for own, other in states]
