"""The learner of `learn-masks`: weights, gates and the multipliers of the budget."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.torch_ops import Factors
from prumux.optimizer.pipeline.context import Context
from prumux.passes.pruning.importance import Scores
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.layer_matching import comparable, matched_error
from prumux.passes.training.losses import divergence, mean_divergence
from prumux.passes.training.teacher import Teacher, observe, teacher
from prumux.passes.training.trainable import (
    parameter_groups,
    trainable,
    validation_rows,
    weights_of,
)
from prumux.passes.training.training_pass import DistillationPass

from .expected_cost import CostBudget
from .masks import final_masks, initial_gates

MATCHED = 4
"""Number of the teacher's layers that are matched, evenly spaced up to the last layer."""
MULTIPLIER_RATE = 1.0
"""Learning rate of the multipliers, relative to the learning rate of the gates."""
PENALTY = 1000.0
"""Initial l2. If l2 started at 0, l1 would grow while the target rises, and sparsity would
overshoot."""


@dataclass(frozen=True)
class MaskOptions:
    """The options of `learn-masks` that concern gates. `LearnMasks` explains them."""

    lr: float
    warmup: float
    blocks: bool
    hidden: bool


class MaskLearner:
    """A model with gates. The validation loss is the loss of the model of `result()`."""

    def __init__(
        self,
        model: Model,
        options: DistillationPass,
        gating: MaskOptions,
        budget: CostBudget,
        *,
        rows: Encoded,
        scores: Scores,
        ctx: Context,
    ) -> None:
        self.model, self.options, self.budget, self.device = model, options, budget, ctx.device
        self.gating = gating
        self.module, self.slots = trainable(model, ctx.device), model.encoder.slots
        self.gates = initial_gates(
            model.encoder, budget, scores, gating.blocks, gating.hidden
        ).to(ctx.device)
        self.multipliers = nn.Parameter(torch.tensor([0.0, PENALTY], device=ctx.device))
        depth = len(ctx.dense.encoder.layers)
        quarters = {max(0, round(depth * (i + 1) / MATCHED) - 1) for i in range(MATCHED)}
        layers = tuple(sorted(quarters)) if options.hidden and depth else ()
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device)
        self.validation_rows = validation_rows(rows, ctx)
        self.validation_teacher = Teacher(self.teacher.module, (), ctx.device)
        self.seed = ctx.generator(options).initial_seed()
        with torch.no_grad():
            self.start_cost = float(budget.expected(self.gates.probabilities()))

    def groups(self) -> list[dict[str, Any]]:
        """Weights and gates minimise the loss, multipliers maximise it.

        Only weights have weight decay.
        """
        rate = self.gating.lr
        ascent = {"params": [self.multipliers], "lr": rate * MULTIPLIER_RATE}
        return [
            *parameter_groups(self.module, self.options.lr),
            {"params": self.gates.parameters, "lr": rate, "weight_decay": 0.0},
            {**ascent, "weight_decay": 0.0, "maximize": True},
        ]

    def loss(self, batch: Batch, progress: float, parallel: DataParallel = ALONE) -> Tensor:
        """The loss that `learn_masks.py` defines. Seed and progress determine the gates."""
        self.gates.clamp()
        text = f"{self.seed}:{progress!r}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7])
        self.apply(*self.gates.draw(torch.Generator().manual_seed(seed)))
        aim, found = self.teacher.teach(batch), observe(self.module, batch, self.device)
        if self.model.kept_hidden is not None:
            here, there = self.model.living_hidden
            found, aim = found.narrowed(here), aim.narrowed(there)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        o, task = self.options, self.model.task
        off = divergence(
            found.logits,
            aim.logits,
            real,
            task,
            o.temperature,
            groups=batch.groups,
            labels=batch.labels,
            parallel=parallel,
        )
        total = o.logits * off
        living = sorted({branch.index for branch in self.module.alive})
        living = comparable(living, self.model.encoder)
        at = self.model.encoder.mux.at if self.model.encoder.mux else None
        matched = matched_error(found, aim, living, real, at, parallel=parallel)
        # Every process has all gates, so each adds an equal share of their cost.
        return total + o.hidden * matched + self.excess(progress) / parallel.size

    def excess(self, progress: float) -> Tensor:
        """l1 (r - r*) + l2 (r - r*)^2: r is the expected sparsity, r* the rising target."""
        b = self.budget
        warmup = self.gating.warmup
        ramp = min(1.0, progress / warmup) if warmup else 1.0
        target = self.start_cost + ramp * (b.limit - self.start_cost)
        over = (target - b.expected(self.gates.probabilities())) / b.dense
        return self.multipliers[0] * over + self.multipliers[1] * over.square()

    def apply(self, factors: tuple[Tensor, ...], hidden: Tensor | None) -> None:
        """Multiply units by these factors. A branch whose factors are all 0 is skipped."""
        half = len(factors) // 2
        self.module.factors = Factors(factors[:half], factors[half:], hidden)
        places = {"attention": 0, "ffn": half}
        branches = self.model.encoder.branches()
        self.module.alive = [
            b for b in branches if bool((factors[places[b.kind] + b.index] != 0).any())
        ]

    def validation_loss(self) -> float:
        """Mean divergence of `result()` from the given model on the select rows."""
        self.apply_final_masks()
        return mean_divergence(
            self.module, self.validation_teacher, self.validation_rows, self.model.task
        )

    def apply_final_masks(self) -> Masks:
        """Close the gates of removed units, and fix the factors of kept units."""
        with torch.no_grad():
            self.gates.clamp()
            masks = final_masks(self.gates, self.budget, self.model.encoder)
            kept = [m.to(self.device) for m in (*masks.heads, *masks.ffn)]
            values = self.gates.values()
        dims = None if self.gates.hidden is None else masks.hidden.float().to(self.device)
        self.apply(tuple(v * m for v, m in zip(values, kept, strict=True)), dims)
        return masks

    def result(self) -> Model:
        """The model with binary masks. Output maps absorb the factors of kept units."""
        masks = self.apply_final_masks()
        found = weights_of(self.module)
        z, k = self.module.factors, self.model.encoder.head_dim
        for branch in self.module.alive:
            factor = (z.heads if branch.kind == "attention" else z.ffn)[branch.index].cpu()
            wide = factor.repeat_interleave(k) if branch.kind == "attention" else factor
            found[f"{branch.output}.weight"] *= wide
        return replace(self.model, weights=found, masks=masks)
