"""`learn-masks`: learn which heads, FFN units and blocks to keep, while the weights adapt.

Every unit has a hard-concrete gate (Louizos et al., https://arxiv.org/abs/1712.01312), trained
with the weights by distillation. A Lagrangian term keeps the sparsity at its target, as in
CoFi (Xia et al., https://arxiv.org/abs/2204.00408). The options `logits` and `hidden` weight
two terms of the loss:

      logits * T^2 KL(t at T || s at T)
    + hidden * mean over four of the given model's layers of |s - t|^2 / |t - mean t|^2
    + l1 (r - r*) + l2 (r - r*)^2

In the first term, s and t are the logits of the student and of the given model, and T is the
option `temperature`. In the second term, they are the hidden states after two matched layers.
The expected sparsity is r, and its target is r*. Gates and weights minimise the loss; the
multipliers l1 and l2 maximise it.

Each of the four layers is matched with a remaining layer of the student. The matching keeps
the order of layers and has the least total error. Two of the four layers may share one of the
student's. PruMUX (https://arxiv.org/abs/2305.14706) prunes multiplexed models in this way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.timing.cost_table import cost_table
from prumux.passes.gates.expected_cost import CostBudget, CountedBudget, TimedBudget
from prumux.passes.gates.mask_learner import MaskLearner, MaskOptions
from prumux.passes.pruning.importance import fisher
from prumux.passes.training.loop import train
from prumux.passes.training.training_pass import DistillationPass

from .prune import Prune


@dataclass(frozen=True)
class LearnMasks(DistillationPass):
    """Learn masks and weights together, to a sparsity or speed-up, from the dense model.

    Example: `learn-masks{sparsity=0.8 epochs=10},slice,distill`
    """

    name: ClassVar[str] = "learn-masks"
    masks: ClassVar[Literal["adds"]] = "adds"
    sparsity: float | None = field(
        default=None, metadata={"help": "share of the dense encoder to remove, in [0, 1)"}
    )
    of: Literal["weights", "macs"] = field(
        default="weights", metadata={"help": "unit of sparsity: weights or multiply-adds"}
    )
    speedup: float | None = field(
        default=None, metadata={"help": "speed-up over the dense model to reach, measured"}
    )
    mask_lr: float = field(
        default=0.1, metadata={"help": "highest learning rate of the masks"}
    )
    warmup: float = field(
        default=0.5, metadata={"help": "share of the run in which the target rises"}
    )
    blocks: bool = field(default=True, metadata={"help": "whether whole blocks have a gate"})
    hidden_masks: bool = field(
        default=False, metadata={"help": "whether hidden dimensions have a gate"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_above_zero("mask_lr")
        if (self.sparsity is None) == (self.speedup is None):
            raise ValueError("give one of sparsity=0.8 and speedup=4")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), not {self.sparsity}")
        if self.speedup is not None and not self.speedup >= 1:
            raise ValueError(f"speedup must be 1 or more, not {self.speedup}")
        if self.speedup is not None and self.hidden_masks:
            raise ValueError("hidden_masks needs sparsity: no times of hidden sizes are known")
        if not self.hidden + self.logits:
            raise ValueError("hidden and logits are both 0: nothing would be learnt")
        if not 0 <= self.warmup <= 1:
            raise ValueError(f"warmup must be in [0, 1], not {self.warmup}")

    @property
    def gating(self) -> MaskOptions:
        """The options that concern gates."""
        return MaskOptions(self.mask_lr, self.warmup, self.blocks, self.hidden_masks)

    @property
    def measures(self) -> bool:
        """True for a speed-up, which is measured on the target."""
        return self.speedup is not None

    def sketch(self) -> Pass:
        """Return `prune` with the same target: sizes of about the same cost, no training."""
        return Prune(sparsity=self.sparsity, of=self.of, speedup=self.speedup)

    def requires(self, model: Model) -> None:
        """Refuse a model with masked units that are not cut yet."""
        if not model.masks.all_true:
            raise PassError(
                "learn-masks cannot take a model with masks that are not cut yet\n"
                "put slice before it: slice,learn-masks{...}",
                exit_code=2,
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """Return binary masks within the budget, and weights that have adapted to them.

        Raises:
            PassError: the speed-up is out of reach; the message has the largest possible
                speed-up.
            MissingError: `speedup` is given and there is no target to measure on.
        """
        if self.sparsity == 0 or self.speedup == 1:
            return model
        budget = self._budget(model, ctx)
        if budget.cost(model.encoder) <= budget.limit:
            return model
        rows = self.rows(ctx)
        scores = fisher(model, ctx)
        args = (model, self, self.gating, budget)
        make = partial(MaskLearner, *args, rows=rows, scores=scores)
        learner = make(ctx=ctx)
        name = ctx.entry("learn-masks", self, model, budget.limit, ctx.length, len(rows))
        facts = train(learner, rows, self.length, ctx, name, make=make)
        found = learner.result()
        sizes = found.masks.sizes(found.encoder)
        return replace(
            found,
            notes={
                "heads": [x.heads for x in sizes.layers],
                "ffn": [x.ffn for x in sizes.layers],
                "hidden": sizes.hidden,
                "sparsity": 1 - budget.cost(sizes) / budget.dense,
                **facts,
            },
        )

    def _budget(self, model: Model, ctx: Context) -> CostBudget:
        if self.speedup is None:
            share = 1 - (self.sparsity or 0)
            dense = replace(ctx.dense.encoder, mux=model.encoder.mux)
            return CountedBudget(model.encoder, dense, share, self.of, ctx.length)
        table = cost_table(model, ctx)
        limit_ms = table.limit_ms(self.speedup, self.name)
        return TimedBudget(table, limit_ms, model.encoder.pool_early)
