"""Computes the last attention block, and all after it, at the pooled position only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from prumux.optimizer.model.ir import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass


@dataclass(frozen=True)
class PoolEarly(Pass):
    """Compute the last attention block and all after it at the pooled position only."""

    name: ClassVar[str] = "pool-early"
    preserves: ClassVar[bool] = True

    def run(self, model: Model, ctx: Context) -> Model:
        """Nothing to do where the head reads other positions, or where it is done already.

        The classifier of most sequence tasks reads one position. Once the last attention block
        has gathered from the others, nothing reads them again.
        """
        del ctx
        if not model.encoder.reads_first or model.encoder.pool_early:
            return model
        return replace(model, encoder=replace(model.encoder, pool_early=True))
