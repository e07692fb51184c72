"""Fisher importance of units. All passes that rank units share this module.

As in Kwon et al., https://arxiv.org/abs/2204.09656, the output of every head and FFN unit, or
every hidden dimension, is multiplied by a factor z, which is 1. The importance of the unit is
the Fisher information of z,

    I(z) = 1/R * sum_r sum_c p_rc * (d log p_rc / d z)^2

over R rows and C classes. The probabilities p are the model's own prediction, so no labels are
needed. To second order, removing the unit costs I(z) / 2 nats of KL divergence from the given
model's prediction. Every row has its own gradient, because z has an axis of rows. For
regression with unit variance, I(z) is the mean squared derivative of the output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.data.tokenize import Encoded, groups_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.torch_ops import Factors
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.tasks.fisher import signs

ROWS = 1024
BATCH = 64


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance of every unit, per layer: heads [H], ffn [F]."""

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]


def fisher(model: Model, ctx: Context) -> Scores:
    """Fisher importance of every head and FFN unit on the first `ROWS` fit rows."""
    masks, half = model.masks, len(model.encoder.layers)

    def put(own: Factors, z: list[Tensor]) -> Factors:
        return Factors(tuple(z[:half]), tuple(z[half:]), own.hidden)

    found = _stored("fisher", model, (*masks.heads, *masks.ffn), put, ctx)
    return Scores(heads=tuple(found[:half]), ffn=tuple(found[half:]))


def hidden_fisher(model: Model, ctx: Context) -> Tensor:
    """Fisher importance of every hidden dimension, [D], on the first `ROWS` fit rows.

    Derivatives are taken in the masked model, through every write to the residual stream and
    through the statistics of LayerNorm.
    """

    def put(own: Factors, z: list[Tensor]) -> Factors:
        return Factors(own.heads, own.ffn, z[0])

    return _stored("hidden-fisher", model, (model.masks.hidden,), put, ctx)[0]


Put = Callable[[Factors, list[Tensor]], Factors]
"""Takes a module's factors and tensors [B, W]; returns factors that use these tensors."""


def _stored(
    name: str, model: Model, alive: tuple[Tensor, ...], put: Put, ctx: Context
) -> list[Tensor]:
    """Importance of the units that `alive` has masks for. The result is kept in the store."""
    rows = ctx.fit.take(range(min(ROWS, len(ctx.fit))))

    def make() -> dict[str, Tensor]:
        return {str(i): x for i, x in enumerate(_fisher(model, alive, put, rows, ctx))}

    found = ctx.cached(name, (model, rows), make)
    return [found[str(i)] for i in range(len(alive))]


def _fisher(
    model: Model, alive: tuple[Tensor, ...], put: Put, rows: Encoded, ctx: Context
) -> list[Tensor]:
    module, n = EncoderModule(model).to(ctx.device).eval(), model.encoder.slots
    groups = groups_of(rows, BATCH, n)
    total = [torch.zeros(len(m)) for m in alive]
    living = [m.float().to(ctx.device) for m in alive]
    random = torch.Generator().manual_seed(ctx.seed)
    with ctx.progress.task("importance", len(groups)) as step:
        for batch in groups:
            inputs = {k: torch.as_tensor(v).to(ctx.device) for k, v in batch.inputs().items()}
            mixed = len(batch.rows) // n
            ones = [torch.ones(mixed, len(m)).to(m).requires_grad_() for m in living]
            masked = [one * mask for one, mask in zip(ones, living, strict=True)]
            with autocast(ctx.device):
                logits = module(**inputs, factors=put(module.factors, masked)).float()
            mask = inputs["attention_mask"].bool()
            real = None if model.encoder.pooled else model.task.counted(mask, batch.labels)
            weight = signs(logits, real, model.encoder.slots > 1, random)
            for loss in model.task.fisher_scalars(logits, weight, random):
                grads = torch.autograd.grad(loss, ones, retain_graph=True, allow_unused=True)
                for i, grad in enumerate(grads):
                    if grad is not None:
                        total[i] += grad.square().sum(0).cpu()
            step()
    return [x / sum(len(batch.rows) for batch in groups) for x in total]
