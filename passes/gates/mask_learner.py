"""Trains weights and gates together: what `learn-masks` hands to the training loop."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.ir import Masks, Model
from prumux.optimizer.model.torch_ops import Factors
from prumux.optimizer.pipeline.context import Context
from prumux.passes.distill import check_rows, groups, trainable, weights_of
from prumux.passes.pruning.importance import Scores
from prumux.passes.training.layer_matching import comparable, matched_error
from prumux.passes.training.losses import divergence, mean_divergence
from prumux.passes.training.teacher import Teacher, observe, teacher
from prumux.passes.training.team import ALONE, Team

from .decide import decide, start
from .expected_cost import Budget

if TYPE_CHECKING:
    from prumux.passes.learn_masks import LearnMasks

MATCHED = 4
"""So many of the teacher's layers are matched, at even distances, the last among them."""
MULTIPLIER_RATE = 1.0
"""The multipliers' learning rate over the gates'."""
PENALTY = 1000.0
"""l2 at the start. From 0, l1 winds up while the target rises and sparsity overshoots it."""


class MaskLearner:
    """A model with gates; `harm` is that of the model that would be returned now."""

    def __init__(
        self,
        model: Model,
        options: LearnMasks,
        budget: Budget,
        *,
        rows: Encoded,
        scores: Scores,
        ctx: Context,
    ) -> None:
        self.model, self.options, self.budget, self.device = model, options, budget, ctx.device
        self.module, self.slots = trainable(model, ctx.device), model.encoder.slots
        self.gates = start(
            model.encoder, budget, scores, options.blocks, options.hidden_masks
        ).to(ctx.device)
        self.multipliers = nn.Parameter(torch.tensor([0.0, PENALTY], device=ctx.device))
        depth = len(ctx.dense.encoder.layers)
        quarters = {max(0, round(depth * (i + 1) / MATCHED) - 1) for i in range(MATCHED)}
        layers = tuple(sorted(quarters)) if options.hidden and depth else ()
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device)
        self.checks = check_rows(rows, ctx)
        self.judge = Teacher(self.teacher.module, (), ctx.device)
        self.seed = ctx.generator(options).initial_seed()
        with torch.no_grad():
            self.start_cost = float(budget.expected(self.gates.chances()))

    def groups(self) -> list[dict[str, Any]]:
        """Weights and gates descend, multipliers ascend; only weights decay."""
        rate = self.options.mask_lr
        ascent = {"params": [self.multipliers], "lr": rate * MULTIPLIER_RATE}
        return [
            *groups(self.module, self.options.lr),
            {"params": self.gates.parameters, "lr": rate, "weight_decay": 0.0},
            {**ascent, "weight_decay": 0.0, "maximize": True},
        ]

    def loss(self, batch: Batch, share: float, team: Team = ALONE) -> Tensor:
        """See `LearnMasks`. What is drawn depends on seed and share only."""
        self.gates.clamp()
        text = f"{self.seed}:{share!r}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7])
        self.apply(*self.gates.draw(torch.Generator().manual_seed(seed)))
        aim, found = self.teacher.teach(batch), observe(self.module, batch, self.device)
        if self.model.kept_hidden is not None:
            here, there = self.model.living_hidden
            found, aim = found.narrowed(here), aim.narrowed(there)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        o, task = self.options, self.model.task
        off = divergence(found.logits, aim.logits, real, task, o.temperature, team=team)
        total = o.logits * off
        living = sorted({branch.index for branch in self.module.alive})
        living = comparable(living, self.model.encoder)
        at = self.model.encoder.mux.at if self.model.encoder.mux else None
        matched = matched_error(found, aim, living, real, at, team=team)
        # Every process has all of the gates: each adds its part of what they cost.
        return total + o.hidden * matched + self.excess(share) / team.size

    def excess(self, share: float) -> Tensor:
        """l1 (s - t) + l2 (s - t)^2 for sparsity s; the target t rises linearly."""
        b = self.budget
        ramp = min(1.0, share / self.options.warmup) if self.options.warmup else 1.0
        target = self.start_cost + ramp * (b.limit - self.start_cost)
        over = (target - b.expected(self.gates.chances())) / b.whole
        return self.multipliers[0] * over + self.multipliers[1] * over.square()

    def apply(self, factors: tuple[Tensor, ...], hidden: Tensor | None) -> None:
        """Run with these factors; a branch whose factors are all 0 is skipped."""
        half = len(factors) // 2
        self.module.factors = Factors(factors[:half], factors[half:], hidden)
        places = {"attention": 0, "ffn": half}
        branches = self.model.encoder.branches()
        self.module.alive = [
            b for b in branches if bool((factors[places[b.kind] + b.index] != 0).any())
        ]

    def harm(self) -> float:
        """Mean divergence of the decided model from the dense one on the select rows."""
        self.settle()
        return mean_divergence(self.module, self.judge, self.checks, self.model.task)

    def settle(self) -> Masks:
        """Run with the factors that would be kept for good."""
        with torch.no_grad():
            self.gates.clamp()
            masks = decide(self.gates, self.budget, self.model.encoder)
            kept = [m.to(self.device) for m in (*masks.heads, *masks.ffn)]
            values = self.gates.values()
        dims = None if self.gates.hidden is None else masks.hidden.float().to(self.device)
        self.apply(tuple(v * m for v, m in zip(values, kept, strict=True)), dims)
        return masks

    def result(self) -> Model:
        """The model with binary masks; what is kept of the factors is in the weights."""
        masks = self.settle()
        found = weights_of(self.module)
        z, k = self.module.factors, self.model.encoder.head_dim
        for branch in self.module.alive:
            factor = (z.heads if branch.kind == "attention" else z.ffn)[branch.index].cpu()
            wide = factor.repeat_interleave(k) if branch.kind == "attention" else factor
            found[f"{branch.output}.weight"] *= wide
        return replace(self.model, weights=found, masks=masks)
