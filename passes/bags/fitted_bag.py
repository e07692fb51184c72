"""A fitted bag of embeddings: compute its loss on other rows, or turn it into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.families.bag import pieces_of
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context

from .features import Features
from .fitting import Aims, Fitted
from .teaching import Taught, dense_logits

TEMPERATURE = 2.0
"""Temperature of the distillation, see `Task.logit_loss`."""


@dataclass(frozen=True, eq=False)
class FittedBag:
    """A bag's sizes, the features that it was fitted to, and its vectors."""

    sizes: Encoder
    features: Features
    fitted: Fitted

    def select_loss(self, ctx: Context) -> float:
        """Mean loss on the select rows against labels; without labels, against the teacher."""
        rows = ctx.select or ctx.fit
        logits = self.fitted.logits(self.features.of(rows, self.sizes).matrix)
        if rows.labels is not None:
            return float(ctx.dense.task.label_loss(logits, _tensor(rows.labels))[0])

        def make() -> dict[str, Tensor]:
            return {"logits": dense_logits(rows, ctx)}

        aim = ctx.cached("bag-teacher", (ctx.dense, rows), make)["logits"]
        return float(ctx.dense.task.logit_loss(logits, aim, 1.0))

    def model(self, given: Model, notes: Mapping[str, Any]) -> Model:
        """Replace the encoder and weights of `given` by the bag's; unused vectors are 0."""
        sizes, pieces = self.sizes, pieces_of(self.sizes)
        table = torch.zeros(pieces + int(sizes.number("buckets")), sizes.hidden)
        table[torch.from_numpy(self.features.used)] = torch.from_numpy(self.fitted.vectors)
        weights = {
            "embeddings.piece.weight": table[:pieces].clone(),
            "embeddings.pair.weight": table[pieces:].clone(),
            "head.output.weight": torch.eye(sizes.labels),
            "head.output.bias": torch.from_numpy(self.fitted.shift),
        }
        made = {name: weights[name] for name in expected_shapes(sizes)}
        return replace(empty_bag(given, sizes), weights=made, notes=notes)


def empty_bag(given: Model, sizes: Encoder) -> Model:
    """Replace the encoder and weights of `given` by a bag whose weights are all 0."""
    weights = {name: torch.zeros(shape) for name, shape in expected_shapes(sizes).items()}
    full = Masks.full(sizes)
    return replace(given, encoder=sizes, weights=weights, masks=full, kept_hidden=None)


def aims_of(rows: Encoded, taught: Taught, model: Model) -> Aims:
    """Targets of rows: the given model's logits where they are known, else the labels."""
    others = torch.full((len(rows),), rows.labels is not None)
    others[taught.rows] = False
    labels = torch.zeros(0) if rows.labels is None else _tensor(rows.labels)[others]
    alone = len(rows) + torch.arange(len(taught.pieces))
    return Aims(
        task=model.task,
        rows=len(taught.rows) + len(alone) + len(labels),
        taught=torch.cat([taught.rows, alone]),
        logits=torch.cat([taught.logits, taught.piece_logits]),
        labelled=others.nonzero()[:, 0],
        labels=labels,
        temperature=TEMPERATURE,
    )


def _tensor(labels: Any) -> Tensor:
    return torch.as_tensor(np.asarray(labels))
