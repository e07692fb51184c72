"""`prune`: mark heads, FFN units and whole blocks for removal, over all layers together.

The pass keeps the units of greatest summed importance within a cost limit: a knapsack over
branches (`pruning/allocate.py`). Importance is the Fisher information of a factor that
multiplies a unit's output, see `pruning/importance.py` (Kwon et al.,
https://arxiv.org/abs/2204.09656). With `by=second-order` it is second-order importance with
compensation (Optimal Brain Compression, https://arxiv.org/abs/2208.11580). Cost is counted
(weights, multiply-adds) or measured on the target. `slice` cuts the marked units.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.cost import branch_cost
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.timing.calibration import measured_speedup
from prumux.optimizer.timing.cost_table import cost_table
from prumux.passes.pruning.branch_importance import KeepCounts, branch_importance
from prumux.passes.pruning.branch_options import (
    GRID,
    BranchCost,
    BranchImportance,
    choose_counts,
    counted_costs,
    measured_costs,
)

TRIES = 3
"""Largest number of timed prunings for one speed-up. Each timing corrects the next limit."""
NEAR = 0.02
"""Relative distance from the requested speed-up that is close enough."""


@dataclass(frozen=True)
class Prune(Pass):
    """Mark heads, FFN units and blocks for removal, jointly, to a sparsity or speed-up.

    Example: `prune{sparsity=0.6},slice,reconstruct`
    """

    name: ClassVar[str] = "prune"
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
    by: Literal["fisher", "second-order"] = field(
        default="fisher",
        metadata={"help": "importance of single units, or of one removal after another"},
    )

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.speedup is None):
            raise ValueError("give one of sparsity=0.6 and speedup=2")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), not {self.sparsity}")
        if self.speedup is not None and not self.speedup >= 1:
            raise ValueError(f"speedup must be 1 or more, not {self.speedup}")

    @property
    def measures(self) -> bool:
        """True for a speed-up, which is measured on the target."""
        return self.speedup is not None

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """Sparsities in multiply-adds from 0.1 to 0.9, in steps of 0.025."""
        del model
        return [cls(sparsity=step / 40, of="macs") for step in range(4, 37)]

    def run(self, model: Model, ctx: Context) -> Model:
        """Return masks with the greatest summed importance within the limit.

        Raises:
            PassError: the speed-up is out of reach; the message has the largest possible
                speed-up.
            MissingError: `speedup` is given and there is no target to measure on.
        """
        left = any(bool(m.any()) for m in (*model.masks.heads, *model.masks.ffn))
        if self.sparsity == 0 or self.speedup == 1 or not left:
            return model
        importance, keep = branch_importance(model, ctx, self.by)
        if self.sparsity is None:
            counts = self._timed(model, importance, keep, ctx)
        else:
            dense = replace(ctx.dense.encoder, mux=model.encoder.mux)
            limit = (1 - self.sparsity) * branch_cost(dense, ctx.length, self.of)
            counts = self._within(model, importance, counted_costs(ctx, self.of), limit)
        half = len(counts) // 2
        return replace(keep(counts), notes={"heads": counts[:half], "ffn": counts[half:]})

    def _timed(
        self, model: Model, importance: BranchImportance, keep: KeepCounts, ctx: Context
    ) -> list[int]:
        """Choose counts with the requested speed-up by timing, not only by the cost table."""
        shapes = [b.input_ids.shape for b in ctx.workload]
        about = (self, model, ctx.target, ctx.threads, shapes)
        # The counts are stored for resumed runs, because a new timing may give other counts.
        found: list[int] = ctx.cached_json(
            "timed", about, lambda: self._closest(model, importance, keep, ctx)
        )
        return found

    def _closest(
        self, model: Model, importance: BranchImportance, keep: KeepCounts, ctx: Context
    ) -> list[int]:
        table = cost_table(model, ctx)
        asked = self.speedup or 1
        limit = table.limit_ms(asked, self.name)
        found: dict[float, list[int]] = {}
        for _ in range(TRIES):
            counts = self._within(
                model, importance, measured_costs(table), limit - table.base_ms, GRID
            )
            kept = keep(counts)
            reached = measured_speedup(kept.masks.sizes(kept.encoder), ctx)
            found[abs(reached / asked - 1)] = counts
            if abs(reached / asked - 1) <= NEAR:
                break
            limit *= reached / asked
            if limit <= table.base_ms:
                break
        return found[min(found)]

    def _within(
        self,
        model: Model,
        importance: BranchImportance,
        costs: tuple[BranchCost, BranchCost],
        limit: float,
        grid: int = 1,
    ) -> list[int]:
        try:
            return choose_counts(model, importance, costs, limit, grid)
        except ValueError as error:
            raise PassError(f"{self}: {error}\nask for less", exit_code=2) from error
