"""Second-order importance: remove a branch's units one at a time, with compensation.

Within a branch the cheapest unit is removed first, and the weights of all other units change
to compensate for the removed unit (`optimal_brain_surgeon.py`). The loss of a removal is
computed from the branch's K-FAC curvature (`refit/curvature.py`). If two units have the same
output, removing one costs little and removing both costs much. Importance of single units
cannot show this. The output bias absorbs the mean of the removed inputs, so the second moments
H of the inputs are centred. The last removal also removes the bias.

K-FAC curvature ignores correlations between positions. So the losses of every branch are
scaled, such that the summed loss of single removals without compensation equals the branch's
Fisher importance. After scaling, the values of all branches have the unit of importance: twice
the KL divergence in nats.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Branch
from prumux.optimizer.pipeline.context import Context
from prumux.passes.refit.curvature import Curvature, curvature

from .importance import Scores, fisher
from .optimal_brain_surgeon import compensated, removal

ROWS = 1024
BATCH = 32
DAMPING = 0.01
"""Damping: added to the diagonal of H, relative to the diagonal's mean."""


@dataclass(frozen=True, eq=False)
class Removals:
    """The order of removals of every branch, the losses, and the data for compensation."""

    found: Mapping[str, Tensor]
    """Tensors under keys `branch.part`, for every branch with units. The parts are:

    - `order`, int64 [N]: removed units in order; units that were masked before come first;
    - `loss`, float64 [N + 1]: the loss after n removals;
    - `gram` [M, M], damped, and `mean` [M]: of the inputs that were not masked before.
    """

    def values(self, masks: Masks) -> list[tuple[float, ...]]:
        """Importance of 0, 1, ... kept units of each branch: all attention, then all FFN."""
        losses = [
            self.found.get(f"{branch.name}.loss", torch.zeros(len(mask) + 1))
            for branch, mask in _branches(masks)
        ]
        return [tuple((loss[-1] - loss.flip(0)).tolist()) for loss in losses]

    def keep(self, model: Model, counts: Sequence[int]) -> Model:
        """Mask all units except `counts` of each branch: all attention, then all FFN.

        Output maps and their biases compensate; columns of removed units become zero.
        """
        weights, half = dict(model.weights), len(model.masks.heads)
        kept: list[Tensor] = []
        for (branch, mask), count in zip(_branches(model.masks), counts, strict=True):
            left = mask.clone()
            if bool(mask.any()):
                left[self.found[f"{branch.name}.order"][: len(mask) - count]] = False
            kept.append(left)
            if bool(left.any()) and not torch.equal(left, mask):
                weights |= self._moved(model, branch, mask, left)
        masks = Masks(tuple(kept[:half]), tuple(kept[half:]), model.masks.hidden)
        return replace(model, weights=weights, masks=masks)

    def _moved(
        self, model: Model, branch: Branch, mask: Tensor, left: Tensor
    ) -> dict[str, Tensor]:
        size = _width(model, branch)
        at, name = mask.repeat_interleave(size), branch.output
        old = model.weights[f"{name}.weight"]
        gram, mean = (self.found[f"{branch.name}.{x}"] for x in ("gram", "mean"))
        new = old.clone()
        new[:, at] = compensated(old[:, at], gram, left[mask].repeat_interleave(size))
        found, bias = {f"{name}.weight": new}, model.weights.get(f"{name}.bias")
        if bias is not None:
            found[f"{name}.bias"] = bias + (old - new)[:, at] @ mean
        return found


def second_order(model: Model, ctx: Context) -> Removals:
    """Find the removals of every branch on the first `ROWS` fit rows; cached in the store."""
    rows = ctx.fit.take(range(min(ROWS, len(ctx.fit))))

    def make() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        groups = groups_of(rows, BATCH, model.encoder.slots)
        scores, around = fisher(model, ctx), curvature(model, groups, ctx)
        with ctx.progress.task("removal", len(around)) as step:
            for branch, each in around.items():
                part = _branch(model, branch, each, scores)
                found |= {f"{branch.name}.{k}": x for k, x in part.items()}
                step()
        return found

    return Removals(ctx.cached("second-order", (model, rows, DAMPING), make))


def _branches(masks: Masks) -> list[tuple[Branch, Tensor]]:
    """Every branch with its mask, attention first."""
    heads = [(Branch(i, "attention"), mask) for i, mask in enumerate(masks.heads)]
    return heads + [(Branch(i, "ffn"), mask) for i, mask in enumerate(masks.ffn)]


def _branch(model: Model, branch: Branch, at: Curvature, scores: Scores) -> dict[str, Tensor]:
    """Order, losses and compensation data of one branch: the parts of `Removals.found`."""
    kind = "heads" if branch.kind == "attention" else "ffn"
    mask: Tensor = getattr(model.masks, kind)[branch.index]
    importance, size = float(getattr(scores, kind)[branch.index].sum()), _width(model, branch)
    alive = mask.repeat_interleave(size)
    mean = at.mean[alive]
    raw = at.inputs[alive][:, alive].double()
    gram = raw - torch.outer(mean, mean).double()
    gram.diagonal().add_(DAMPING * float(gram.diagonal().mean()) + 1e-12)
    weight = model.weights[f"{branch.output}.weight"][:, alive].double()
    root = at.root.double()
    order, loss = removal(root @ weight, gram, size)
    whole = weight @ mean.double()
    bias = model.weights.get(f"{branch.output}.bias")
    whole = whole if bias is None else whole + bias.double()
    loss[-1] += (root @ whole).square().sum()
    scale = _scale(root @ weight, raw, size, importance)
    gone = (~mask).nonzero()[:, 0]
    return {
        "order": torch.cat([gone, mask.nonzero()[:, 0][order]]),
        "loss": torch.cat([loss.new_zeros(len(gone)), scale * loss]),
        "gram": gram.float(),
        "mean": mean,
    }


def _scale(weight: Tensor, gram: Tensor, size: int, importance: float) -> float:
    """Ratio of Fisher importance to the summed loss of single, uncompensated removals."""
    groups = len(gram) // size
    own = (weight.T @ weight) * gram
    blocks = own.view(groups, size, groups, size).diagonal(dim1=0, dim2=2)
    return importance / float(blocks.sum()) if float(blocks.sum()) > 0 else 0.0


def _width(model: Model, branch: Branch) -> int:
    return model.encoder.head_dim if branch.kind == "attention" else 1
