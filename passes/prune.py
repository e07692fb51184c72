"""Marks heads, FFN units and whole blocks for removal, chosen together over all layers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.model.cost import branch_cost
from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.timing.calibration import measured_speedup
from prumux.optimizer.timing.cost_table import cost_table
from prumux.passes.pruning.allocate import values, with_counts
from prumux.passes.pruning.branch_options import GRID, Price, Worth, choose, counted, timed
from prumux.passes.pruning.importance import fisher
from prumux.passes.pruning.second_order import second_order

TRIES = 3
"""Choices that are timed for one speed-up, each corrected by what the last one reached."""
NEAR = 0.02
"""Relative distance from the speed-up that was asked for at which no more are tried."""

Keep = Callable[[Sequence[int]], Model]
"""The model that keeps these counts."""


@dataclass(frozen=True)
class Prune(Pass):
    """Mark heads, FFN units and blocks for removal, jointly, to a sparsity or speed-up."""

    name: ClassVar[str] = "prune"
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
    by: Literal["fisher", "second-order"] = field(
        default="fisher",
        metadata={"help": "what units are worth: each on its own, or one by one with refits"},
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
        """A speed-up is measured on the target."""
        return self.speedup is not None

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """A ladder in multiply-adds, close enough that its steps cost little accuracy."""
        del model
        return [cls(sparsity=step / 40, of="macs") for step in range(4, 37)]

    def run(self, model: Model, ctx: Context) -> Model:
        """Masks of greatest summed importance under the limit.

        Raises:
            PassError: the speed-up is out of reach; says how far it goes.
            MissingError: a speed-up is asked for and there is no target to measure on.
        """
        left = any(bool(m.any()) for m in (*model.masks.heads, *model.masks.ffn))
        if self.sparsity == 0 or self.speedup == 1 or not left:
            return model
        worth, keep = _worth(model, ctx, self.by)
        if self.sparsity is None:
            counts = self._timed(model, worth, keep, ctx)
        else:
            dense = replace(ctx.dense.encoder, mux=model.encoder.mux)
            limit = (1 - self.sparsity) * branch_cost(dense, ctx.length, self.of)
            counts = self._within(model, worth, counted(ctx, self.of), limit)
        half = len(counts) // 2
        return replace(keep(counts), notes={"heads": counts[:half], "ffn": counts[half:]})

    def _timed(self, model: Model, worth: Worth, keep: Keep, ctx: Context) -> list[int]:
        """Counts that reach the speed-up when they are timed, not only by the table."""
        shapes = [b.input_ids.shape for b in ctx.workload]
        about = (self, model, ctx.target, ctx.threads, shapes)
        # Stored, because a second timing might choose differently in a resumed run.
        found: list[int] = ctx.cached_json(
            "timed", about, lambda: self._closest(model, worth, keep, ctx)
        )
        return found

    def _closest(self, model: Model, worth: Worth, keep: Keep, ctx: Context) -> list[int]:
        table = cost_table(model, ctx)
        asked = self.speedup or 1
        limit = table.limit_ms(asked, self.name)
        found: dict[float, list[int]] = {}
        for _ in range(TRIES):
            counts = self._within(model, worth, timed(table), limit - table.base_ms, GRID)
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
        worth: Worth,
        prices: tuple[Price, Price],
        limit: float,
        grid: int = 1,
    ) -> list[int]:
        try:
            return choose(model, worth, prices, limit, grid)
        except ValueError as error:
            raise PassError(f"{self}: {error}\nask for less", exit_code=2) from error


def _worth(model: Model, ctx: Context, by: str) -> tuple[Worth, Keep]:
    """What counts are worth, and the model that keeps given counts."""
    masks = (*model.masks.heads, *model.masks.ffn)
    if by == "second-order":
        removals = second_order(model, ctx)
        return removals.values(model.masks), lambda counts: removals.keep(model, counts)
    scores = fisher(model, ctx)
    worth = [
        values(score, mask, range(len(mask) + 1))
        for score, mask in zip((*scores.heads, *scores.ffn), masks, strict=True)
    ]
    return worth, lambda counts: replace(model, masks=with_counts(model.masks, scores, counts))
