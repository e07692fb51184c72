"""Marks heads, FFN units and whole blocks for removal, chosen together over all layers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, Self

from torch import Tensor

from prumux.optimizer.context import Context
from prumux.optimizer.cost import (
    block_weights,
    count,
    ffn_macs,
    ffn_weights,
    head_macs,
    head_weights,
)
from prumux.optimizer.errors import PassError
from prumux.optimizer.ir import Model
from prumux.optimizer.passbase import Pass
from prumux.optimizer.table import cost_table

from .allocate import Offer, allocate, values, with_counts
from .importance import Scores, fisher

GRID = 16
"""FFN widths tried under a measured time: the table is not finer than this."""


@dataclass(frozen=True)
class Prune(Pass):
    """Mark heads, FFN units and blocks for removal, jointly, to a sparsity or speed-up."""

    name: ClassVar[str] = "prune"
    marks: ClassVar[bool] = True
    sparsity: float | None = field(
        default=None, metadata={"help": "share of the dense encoder to remove, in [0, 1)"}
    )
    of: Literal["weights", "macs"] = field(
        default="weights", metadata={"help": "what sparsity counts: weights or multiply-adds"}
    )
    speedup: float | None = field(
        default=None, metadata={"help": "measured speed-up over the dense model to reach"}
    )

    def __post_init__(self) -> None:
        if (self.sparsity is None) == (self.speedup is None):
            raise ValueError("give one of sparsity=0.6 and speedup=2")
        if self.sparsity is not None and not 0 <= self.sparsity < 1:
            raise ValueError(f"sparsity must be in [0, 1), not {self.sparsity}")
        if self.speedup is not None and not self.speedup >= 1:
            raise ValueError(f"speedup must be 1 or more, not {self.speedup}")

    @classmethod
    def choices(cls, model: Model) -> Iterable[Self]:
        """A ladder in multiply-adds, close enough that its steps cost little accuracy."""
        del model
        return [cls(sparsity=step / 20, of="macs") for step in range(2, 19)]

    def run(self, model: Model, ctx: Context) -> Model:
        """Masks of greatest summed importance under the limit.

        Raises:
            PassError: the speed-up is out of reach; says how far it goes.
            MissingError: a speed-up is asked for and there is no target to measure on.
        """
        if self.sparsity == 0 or self.speedup == 1:
            return model
        scores = fisher(model, ctx)
        offers, limit = (
            self._timed(model, scores, ctx)
            if self.sparsity is None
            else self._counted(model, scores, ctx)
        )
        counts = allocate(offers, limit)
        masks = with_counts(model.masks, scores, counts)
        half = len(counts) // 2
        notes = {"heads": counts[:half], "ffn": counts[half:]}
        return replace(model, masks=masks, notes=notes)

    def _counted(
        self, model: Model, scores: Scores, ctx: Context
    ) -> tuple[list[Offer], float]:
        """Offers in weights or multiply-adds; the limit is a share of the dense encoder's."""
        dense, e, length = ctx.dense.encoder, model.encoder, ctx.length
        share, fixed = 1 - (self.sparsity or 0), 0
        if self.of == "weights":
            head = [head_weights(e)] * len(e.layers)
            unit = [ffn_weights(e)] * len(e.layers)
            fixed = block_weights(e)
            limit = share * count(dense, length).encoder_parameters
        else:
            head = [head_macs(e, i, length) for i in range(len(e.layers))]
            unit = [ffn_macs(e, i, length) for i in range(len(e.layers))]
            limit = share * sum(
                x.heads * head_macs(dense, i, length) + x.ffn * ffn_macs(dense, i, length)
                for i, x in enumerate(dense.layers)
            )
        offers = [
            _offer(score, mask, price, fixed)
            for score, mask, price in zip(
                (*scores.heads, *scores.ffn),
                (*model.masks.heads, *model.masks.ffn),
                (*head, *unit),
                strict=True,
            )
        ]
        return offers, limit

    def _timed(self, model: Model, scores: Scores, ctx: Context) -> tuple[list[Offer], float]:
        """Offers in measured milliseconds; the limit is the dense time over the speed-up."""
        table, speedup = cost_table(model, ctx), self.speedup or 1
        limit = table.dense_ms / speedup - table.base_ms
        if limit < 0:
            most = int(10 * table.dense_ms / table.base_ms) / 10
            raise PassError(
                f"{self} leaves {table.dense_ms / speedup:.3g} of {table.dense_ms:.3g} ms, "
                f"embeddings and head alone take {table.base_ms:.3g} ms\n"
                f"ask for prune{{speedup={most:g}}} or less",
                exit_code=2,
            )
        offers = []
        for i, (score, mask) in enumerate(zip(scores.heads, model.masks.heads, strict=True)):
            grid = range(len(mask) + 1)
            costs = tuple(table.attention_ms(i, n) for n in grid)
            offers.append(Offer(tuple(grid), values(score, mask, grid), costs))
        for i, (score, mask) in enumerate(zip(scores.ffn, model.masks.ffn, strict=True)):
            widths = (*range(0, len(mask), GRID), len(mask))
            costs = tuple(table.ffn_ms(i, n) for n in widths)
            offers.append(Offer(widths, values(score, mask, widths), costs))
        return offers, limit


def _offer(score: Tensor, mask: Tensor, price: int, fixed: int) -> Offer:
    grid = range(len(mask) + 1)
    costs = tuple(float(n * price + fixed * (n > 0)) for n in grid)
    return Offer(tuple(grid), values(score, mask, grid), costs)
