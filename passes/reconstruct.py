"""`reconstruct`: refit the pruned model to the given model by least squares, not training.

Branches are refitted one by one, from the first layer to the last. The output map W, b of a
branch is moved by the ridge solution of

    min over dW, db:  sum_t a_t || y_t - (x_t + (W + dW) c_t + b + db) ||^2 + mu ||dW, db||^2

- y_t is the given model's branch output plus residual at position t, before LayerNorm;
- x_t and c_t are the small model's residual stream and inner activations at position t;
- a_t is the weight of position t;
- mu is the strength of the damping (`ridge`).

If a whole branch was removed, the next remaining branch compensates for it. At the end, the
head's first map is refitted in the same way. If pruned hidden dimensions have removed outputs
of this map, the second map is refitted, too. The sum uses only those dimensions of y_t that
the small model still has.

Refits of pruned layers by least squares are also in Kwon et al.,
https://arxiv.org/abs/2204.09656.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.passes.refit.dense_stream import dense_stream
from prumux.passes.refit.refit import ResidualStreams

LIMIT_TOKENS = 16_384


@dataclass(frozen=True)
class Reconstruct(Pass):
    """Refit the remaining weights to the dense model by least squares, without gradient steps.

    Example: `prune{sparsity=0.5},slice,reconstruct`
    """

    name: ClassVar[str] = "reconstruct"
    rows: int = field(default=2048, metadata={"help": "most fit rows to use"})
    ridge: float = field(
        default=0.01, metadata={"help": "damping, relative to the mean activation power"}
    )

    def sketch(self) -> None:
        """Return None: shapes stay as they are."""

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows must be 1 or more, not {self.rows}")
        if not self.ridge > 0:
            raise ValueError(f"ridge must be above 0, not {self.ridge}")

    @torch.no_grad()
    def run(self, model: Model, ctx: Context) -> Model:
        """Refit output maps and head maps; every other weight stays the same tensor.

        Masks may be pending: masked units are neither read nor written.
        """
        dense = ctx.dense
        if model.kept_hidden is None and dense.encoder.hidden != model.encoder.hidden:
            raise PassError(
                f"reconstruct aims at a dense model of hidden size {dense.encoder.hidden}, "
                f"this one has {model.encoder.hidden} and does not say which ones are left\n"
                "put 'reconstruct' before 'slice'",
                exit_code=2,
            )
        rows = _sample_size(ctx.fit, self.rows)
        stream = dense_stream(dense, ctx.fit, rows, model.encoder.slots, ctx.device)
        streams = ResidualStreams(stream, model, ctx.device)
        wanted = stream.branches
        notes = {}
        with ctx.progress.task("refit", len(wanted) + 1) as step:
            for branch in wanted:
                error = streams.advance(branch, self.ridge)
                if error is not None:
                    notes[branch.name] = error
                step()
            if model.encoder.sentence is None:  # an embedding model may have no map to refit
                notes["head"] = streams.refit_head(self.ridge)
            step()
        return replace(model, weights=streams.weights(), notes={"error_left": notes})


def _sample_size(rows: Encoded, limit: int) -> int:
    """Number of rows to use: up to `limit` rows and `LIMIT_TOKENS` tokens, at least one."""
    total = rows.lengths[:limit].cumsum()
    return max(1, int((total <= LIMIT_TOKENS).sum()))
