"""`prune-layers`: mark whole attention or FFN blocks for removal, their LayerNorm included.

The choice is greedy: the pass removes the block whose removal changes the logits least, and
then computes the change of logits for all other blocks again. It needs no gradients and no
labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Batch, groups_of
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.sizes import KINDS, Branch, BranchKind
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass

ROWS = 256
BATCH = 64


@dataclass(frozen=True)
class PruneLayers(Pass):
    """Mark whole attention and FFN blocks for removal, one at a time, by change of logits.

    Example: `prune-layers{attention=4 ffn=2},slice,reconstruct`
    """

    name: ClassVar[str] = "prune-layers"
    masks: ClassVar[Literal["adds"]] = "adds"
    attention: int = field(default=0, metadata={"help": "attention blocks to remove"})
    ffn: int = field(default=0, metadata={"help": "FFN blocks to remove"})

    def __post_init__(self) -> None:
        for option, value in (("attention", self.attention), ("ffn", self.ffn)):
            if value < 0:
                raise ValueError(f"{option} must be 0 or more, not {value}")

    def requires(self, model: Model) -> None:
        """Refuse to remove more blocks than the model has."""
        for kind, asked in zip(KINDS, (self.attention, self.ffn), strict=True):
            left = len(_left(model, kind))
            if asked > left:
                raise PassError(
                    f"{kind}={asked} blocks to remove, the model has {left}; "
                    f"use prune-layers{{{kind}={left}}} or less",
                    exit_code=2,
                )

    def run(self, model: Model, ctx: Context) -> Model:
        """Mask the blocks whose removal changes the logits least."""
        rows = groups_of(
            ctx.fit.take(range(min(ROWS, len(ctx.fit)))), BATCH, model.encoder.slots
        )
        aim = _outputs(model, rows)
        removed: list[str] = []
        todo = dict(zip(KINDS, (self.attention, self.ffn), strict=True))
        total = sum(n * len(_left(model, kind)) for kind, n in todo.items())
        with ctx.progress.task("whole blocks", total) as step:
            while any(todo.values()):
                trials = [b for kind, n in todo.items() if n for b in _left(model, kind)]
                distance = {}
                for branch in trials:
                    distance[branch] = _distance(aim, _outputs(_drop(model, branch), rows))
                    step()
                least = min(trials, key=lambda b: distance[b])
                model = _drop(model, least)
                todo[least.kind] -= 1
                removed.append(least.name)
        return replace(model, notes={"removed": removed}) if removed else model


def _left(model: Model, kind: BranchKind) -> list[Branch]:
    masks = model.masks.heads if kind == "attention" else model.masks.ffn
    return [Branch(i, kind) for i, m in enumerate(masks) if bool(m.any())]


def _drop(model: Model, branch: Branch) -> Model:
    heads, ffn = list(model.masks.heads), list(model.masks.ffn)
    masks = heads if branch.kind == "attention" else ffn
    masks[branch.index] = torch.zeros_like(masks[branch.index])
    kept = Masks(heads=tuple(heads), ffn=tuple(ffn), hidden=model.masks.hidden)
    return replace(model, masks=kept)


def _outputs(model: Model, rows: list[Batch]) -> list[Tensor]:
    module = EncoderModule(model).eval()
    found = []
    for batch in rows:
        logits = torch.as_tensor(run(module, batch.inputs()))
        real = torch.as_tensor(batch.attention_mask) > 0
        found.append(logits if model.encoder.pooled else logits[real])
    return found


def _distance(aim: list[Tensor], found: list[Tensor]) -> float:
    """Mean squared distance of centred logits. It needs no labels for any task."""
    a, b = torch.cat(aim), torch.cat(found)
    if a.shape[-1] > 1:
        a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return float((a - b).square().mean())
