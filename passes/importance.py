"""Importance scores that the prune passes share.

A mask factor z is put on every head and FFN unit; its importance is the Fisher information

    I(z) = 1/R * sum_r sum_c p_rc * (d log p_rc / d z)^2

over R rows and C classes, p being the model's own prediction, so no labels are needed. To
second order, removing the unit costs I(z) / 2 nats of KL divergence from the dense prediction.
The gradient is taken for every row on its own (the factor carries a row axis).
For regression, with unit variance, it is the squared derivative of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prumux.optimizer.context import Context
from prumux.optimizer.encode import Batch, batches
from prumux.optimizer.ir import Model
from prumux.optimizer.module import EncoderModule, Factors
from prumux.optimizer.precision import autocast
from prumux.optimizer.store import key

ROWS = 1024
BATCH = 64
EXACT_CLASSES = 3
DRAWS = 2
"""Above `EXACT_CLASSES`, so many classes are drawn for each row from its prediction."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Importance per layer: heads [H], ffn [F]."""

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]


def fisher(model: Model, ctx: Context) -> Scores:
    """Fisher importance of every head and FFN unit on the first `ROWS` fit rows."""
    from prumux.optimizer.source import digest

    rows = ctx.fit.take(range(min(ROWS, len(ctx.fit))))
    alive = [m.int().tolist() for m in (*model.masks.heads, *model.masks.ffn)]
    given = digest(model.weights, model.task, model.encoder)
    about = (model.masks.hidden.tolist(), rows.ids, rows.types, ctx.seed)
    name = "fisher-" + key(given, alive, *map(repr, about), torch.__version__)
    layers = range(len(model.encoder.layers))
    found = ctx.store.tensors(name, lambda: _flat(_fisher(model, batches(rows, BATCH), ctx)))
    return Scores(
        heads=tuple(found[f"heads.{i}"] for i in layers),
        ffn=tuple(found[f"ffn.{i}"] for i in layers),
    )


def _flat(scores: Scores) -> dict[str, Tensor]:
    heads = {f"heads.{i}": x for i, x in enumerate(scores.heads)}
    return heads | {f"ffn.{i}": x for i, x in enumerate(scores.ffn)}


def _fisher(model: Model, groups: list[Batch], ctx: Context) -> Scores:
    module = EncoderModule(model).to(ctx.device).eval()
    sizes = [*(x.heads for x in model.encoder.layers), *(x.ffn for x in model.encoder.layers)]
    total = [torch.zeros(size) for size in sizes]
    half = len(model.encoder.layers)
    alive = [m.float().to(ctx.device) for m in (*model.masks.heads, *model.masks.ffn)]
    random = torch.Generator().manual_seed(ctx.seed)
    with ctx.progress.task("importance", len(groups)) as step:
        for batch in groups:
            inputs = {k: torch.as_tensor(v).to(ctx.device) for k, v in batch.inputs().items()}
            rows = len(batch.rows)
            ones = [torch.ones(rows, n, device=ctx.device, requires_grad=True) for n in sizes]
            masked = [one * mask for one, mask in zip(ones, alive, strict=True)]
            hidden = module.factors.hidden
            factors = Factors(tuple(masked[:half]), tuple(masked[half:]), hidden)
            with autocast(ctx.device):
                logits = module(**inputs, factors=factors).float()
            real = None if model.encoder.pooled else inputs["attention_mask"].bool()
            for loss in _losses(model, logits, real, random):
                grads = torch.autograd.grad(loss, ones, retain_graph=True, allow_unused=True)
                for i, grad in enumerate(grads):
                    if grad is not None:
                        total[i] += grad.square().sum(0).cpu()
            step()
    rows_seen = sum(len(batch.rows) for batch in groups)
    total = [x / rows_seen for x in total]
    return Scores(heads=tuple(total[:half]), ffn=tuple(total[half:]))


def _losses(
    model: Model, logits: Tensor, real: Tensor | None, random: torch.Generator
) -> list[Tensor]:
    """Scalars whose squared gradients sum to the Fisher information of each row.

    For token tasks a row's positions are summed, each with a random sign: the cross terms
    vanish on average, so one backward pass estimates the sum over positions.
    """
    if model.task.problem == "regression":
        return [logits.sum()]
    log_p = torch.log_softmax(logits, dim=-1)  # [B, C] or [B, T, C]
    weight = torch.ones_like(log_p[..., 0])
    if real is not None:
        sign = torch.randint(0, 2, real.shape, generator=random).to(logits) * 2 - 1
        weight = sign * real
    if logits.shape[-1] <= EXACT_CLASSES:
        root = log_p.detach().exp().sqrt()
        return [(log_p[..., c] * root[..., c] * weight).sum() for c in range(log_p.shape[-1])]
    p = log_p.detach().exp().flatten(0, -2).cpu()
    drawn = torch.multinomial(p, DRAWS, replacement=True, generator=random)
    drawn = drawn.to(logits.device).view(*log_p.shape[:-1], DRAWS)
    picked = torch.gather(log_p, -1, drawn) / DRAWS**0.5
    return [(picked[..., c] * weight).sum() for c in range(DRAWS)]
