"""Learns which heads, FFN units and blocks to keep, while the weights adapt."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.timing.cost_table import cost_table
from prumux.passes.gates.expected_cost import Budget, Counted, Timed
from prumux.passes.gates.mask_learner import MaskLearner
from prumux.passes.pruning.importance import fisher
from prumux.passes.training.loop import train
from prumux.passes.training.training_pass import Taught

from .prune import Prune


@dataclass(frozen=True)
class LearnMasks(Taught):
    """Learn masks and weights together, to a sparsity or speed-up, from the dense model.

    loss = logits * T^2 KL(t at T || s at T)
         + hidden * mean over a few of the dense model's layers of |s - t|^2 / |t - mean t|^2
         + l1 (s - target) + l2 (s - target)^2

    with expected sparsity s under hard-concrete gates and l1, l2 ascended. Every layer of the
    dense model is matched to the living layer that is nearest to it, in order.
    """

    name: ClassVar[str] = "learn-masks"
    masks: ClassVar[Literal["adds"]] = "adds"
    sparsity: float | None = field(
        default=None, metadata={"help": "share of the dense encoder to remove, in [0, 1)"}
    )
    of: Literal["weights", "macs"] = field(
        default="weights", metadata={"help": "what sparsity counts: weights or multiply-adds"}
    )
    speedup: float | None = field(
        default=None, metadata={"help": "measured speed-up over the dense model to reach"}
    )
    mask_lr: float = field(
        default=0.1, metadata={"help": "highest learning rate of the masks"}
    )
    warmup: float = field(
        default=0.5, metadata={"help": "share of the run in which the target rises"}
    )
    blocks: bool = field(default=True, metadata={"help": "whether whole blocks have a mask"})
    hidden_masks: bool = field(
        default=False, metadata={"help": "whether hidden dimensions have a mask"}
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
    def measures(self) -> bool:
        """A speed-up is measured on the target."""
        return self.speedup is not None

    def sketch(self) -> Pass:
        """Masks of the same size, chosen by importance."""
        return Prune(sparsity=self.sparsity, of=self.of, speedup=self.speedup)

    def requires(self, model: Model) -> None:
        """No masks may be pending."""
        if not model.masks.all_true:
            raise PassError(
                "learn-masks cannot take a model with masks that are not cut yet\n"
                "put slice before it: slice,learn-masks{...}",
                exit_code=2,
            )

    def run(self, model: Model, ctx: Context) -> Model:
        """Binary masks under the limit, and weights that have adapted to them.

        Raises:
            PassError: the speed-up is out of reach; says how far it goes.
            MissingError: a speed-up is asked for and there is no target to measure on.
        """
        if self.sparsity == 0 or self.speedup == 1:
            return model
        budget = self._budget(model, ctx)
        if budget.real(model.encoder) <= budget.limit:
            return model
        rows = self.rows(ctx)
        scores = fisher(model, ctx)
        make = partial(MaskLearner, model, self, budget, rows=rows, scores=scores)
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
                "sparsity": 1 - budget.real(sizes) / budget.whole,
                **facts,
            },
        )

    def _budget(self, model: Model, ctx: Context) -> Budget:
        if self.speedup is None:
            share = 1 - (self.sparsity or 0)
            dense = replace(ctx.dense.encoder, mux=model.encoder.mux)
            return Counted(model.encoder, dense, share, self.of, ctx.length)
        table = cost_table(model, ctx)
        limit_ms = table.limit_ms(self.speedup, self.name)
        return Timed(table, limit_ms, model.encoder.pool_early)
