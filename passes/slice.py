"""`slice`: cut masked units out of the weights. Only this pass removes weights by masks."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from prumux.optimizer.base.errors import GateError
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.weights import weights_of
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass


@dataclass(frozen=True)
class Slice(Pass):
    """Cut masked heads, FFN units, blocks and hidden dimensions out of the weights."""

    name: ClassVar[str] = "slice"
    preserves: ClassVar[bool] = True
    masks: ClassVar[Literal["cuts"]] = "cuts"
    atol: float = field(
        default=1e-4, metadata={"help": "largest logit difference to the masked model"}
    )

    def run(self, model: Model, ctx: Context) -> Model:
        """Cut the weights; the model computes the same function."""
        del ctx
        return slice_model(model)

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        """Check that masked and sliced models agree on the rows of the serving point."""
        if after is before or not ctx.workload:
            return
        inputs = ctx.workload[-1].inputs()
        masked = run(EncoderModule(before).eval(), inputs)
        sliced = run(EncoderModule(after).eval(), inputs)
        if not before.encoder.pooled:
            real = inputs["attention_mask"] > 0
            masked, sliced = masked[real], sliced[real]
        worst = float(np.abs(masked - sliced).max())
        if not worst <= self.atol:
            raise GateError(
                f"masked and sliced models differ by {worst:.2e} in a logit, "
                f"more than {self.atol:.0e}; this is a fault of prumux, please report it"
            )


def slice_model(model: Model) -> Model:
    """Cut masked units out of the weights; return `model` itself if nothing is masked."""
    if model.masks.all_true:
        return model
    masks, before = model.masks, model.encoder
    after = masks.sizes(before)
    weights = {
        x.name: _cut(model.weights[x.name], x.kept(before, masks)) for x in weights_of(after)
    }
    notes = {
        "heads": [x.heads for x in after.layers],
        "ffn": [x.ffn for x in after.layers],
        "hidden": after.hidden,
    }
    kept = None if after.hidden == before.hidden else model.living_hidden[1]
    return replace(
        model,
        encoder=after,
        weights=weights,
        masks=Masks.full(after),
        kept_hidden=model.kept_hidden if kept is None else kept,
        notes=notes,
    )


def _cut(tensor: Tensor, kept: tuple[Tensor | None, ...]) -> Tensor:
    """Select the kept entries of one weight along each of its axes."""
    for axis, mask in enumerate(kept):
        if mask is not None and not bool(mask.all()):
            tensor = tensor.index_select(axis, mask.nonzero()[:, 0])
    return tensor.contiguous()
