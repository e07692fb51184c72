"""`pool-early`: compute the last attention block and all later blocks at one position only.

The head of a sequence task reads one position. No block after the last attention block reads
other positions. So outputs stay the same, and the last layers cost less.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass


@dataclass(frozen=True)
class PoolEarly(Pass):
    """Compute the last attention block and all after it at the pooled position only.

    Example: `pool-early,prune{sparsity=0.5},slice`
    """

    name: ClassVar[str] = "pool-early"
    preserves: ClassVar[bool] = True

    def run(self, model: Model, ctx: Context) -> Model:
        """Set `pool_early`, unless the head reads other positions than the first."""
        del ctx
        if not model.encoder.reads_first or model.encoder.pool_early:
            return model
        return replace(model, encoder=replace(model.encoder, pool_early=True))
