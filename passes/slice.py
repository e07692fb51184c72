"""Makes masks physical: the only pass that removes weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from prumux.optimizer.base.errors import GateError
from prumux.optimizer.model.ir import Encoder, Masks, Model, expected_shapes
from prumux.optimizer.model.module import EncoderModule, run
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
        """The same function on smaller weights."""
        del ctx
        return slice_model(model)

    def ensures(self, before: Model, after: Model, ctx: Context) -> None:
        """Masked and sliced models agree on the serving point's rows."""
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
    """The model with its masks made physical; `model` itself if nothing is masked."""
    if model.masks.all_true:
        return model
    masks, before = model.masks, model.encoder
    after = masks.sizes(before)
    weights = {
        name: _cut(name, model.weights[name], before, masks) for name in expected_shapes(after)
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


def _cut(name: str, tensor: Tensor, encoder: Encoder, masks: Masks) -> Tensor:
    """The survivors of one weight along each of its axes."""
    for axis, mask in enumerate(_axes(name, encoder, masks)):
        if mask is not None and not bool(mask.all()):
            tensor = tensor.index_select(axis, mask.nonzero()[:, 0])
    return tensor.contiguous()


def _axes(name: str, encoder: Encoder, masks: Masks) -> tuple[Tensor | None, ...]:
    """What masks each axis of a weight; linear maps are [out, in]."""
    part, _, kind = name.rpartition(".")
    hidden = masks.hidden
    out: Tensor | None = hidden
    into: Tensor | None = hidden
    if part.startswith("embeddings."):
        in_hidden = None if encoder.projected else hidden
        if part == "embeddings.project":
            into = None
        elif part == "embeddings.norm":
            return (in_hidden,)
        else:
            return (None, in_hidden)
    elif part == "head.output":
        out = None
    elif part in ("mux", "demux"):
        return (None, hidden)  # one row a slot
    elif part.startswith("layers."):
        _, index, branch, inner = part.split(".")
        units = masks.ffn[int(index)]
        if branch == "attention":
            units = masks.heads[int(index)].repeat_interleave(encoder.head_dim)
        if inner in ("query", "key", "value", "up"):
            out = units
        elif inner in ("output", "down"):
            into = units
    return (out,) if kind == "bias" or part.endswith("norm") else (out, into)
