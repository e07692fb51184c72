"""`distill`: train the small model to agree with the given model.

The method is knowledge distillation (Hinton et al., https://arxiv.org/abs/1503.02531) of
logits and of hidden states. The loss weights its terms by the options `logits`, `hidden`,
`mixed` and `labels`:

      logits * T^2 KL(t at T || s at T)
    + hidden * mean over layers of |s - t|^2 / |t - mean t|^2
    + mixed  * the second term for layers that run on mixed rows (`mixed_error`)
    + labels * cross-entropy of the labels

In the first term, s and t are the logits of the student and of the given model, and T is the
option `temperature`. In the second term, they are the hidden states after two paired layers.
For regression, squared errors replace the divergence and the cross-entropy. Synthetic rows
(`augment`) have no labels. This pass usually follows the last cut of a pipeline.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.passes.multiplexing.mixed_state_loss import MIXED_HELP, MixedStateLoss
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.layer_matching import layer_pairs
from prumux.passes.training.loop import train
from prumux.passes.training.losses import divergence, label_error, mean_divergence, state_error
from prumux.passes.training.teacher import Teacher, observe, teacher
from prumux.passes.training.trainable import (
    parameter_groups,
    trainable,
    validation_rows,
    weights_of,
)
from prumux.passes.training.training_pass import DistillationPass


@dataclass(frozen=True)
class Distill(DistillationPass):
    """Train the small model to give the dense model's logits and hidden states.

    Example: `prune{sparsity=0.6},slice,distill{epochs=3}`
    """

    name: ClassVar[str] = "distill"
    labels: float = field(default=0.3, metadata={"help": "weight of the labels' error"})
    mixed: float = field(default=1.0, metadata={"help": MIXED_HELP})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_below_zero("labels", "mixed")
        if not self.hidden + self.logits + self.labels:
            raise ValueError("hidden, logits and labels are all 0: nothing would be learnt")

    def sketch(self) -> None:
        """Return None: shapes stay as they are."""

    def run(self, model: Model, ctx: Context) -> Model:
        """Return a model of the same sizes with trained weights, except embedding tables."""
        rows = self.rows(ctx)
        make = partial(Student, model, self, rows)
        student = make(ctx=ctx)
        name = ctx.entry("distill", self, model, len(rows))
        facts = train(student, rows, self.length, ctx, name, make=make)
        return replace(model, weights=weights_of(student.module), notes=facts)


class Student:
    """The learner of `distill`: a model and its distance from the given model."""

    def __init__(self, model: Model, options: Distill, rows: Encoded, ctx: Context) -> None:
        self.options, self.device, self.task = options, ctx.device, model.task
        self.module, self.slots = trainable(model, ctx.device), model.encoder.slots
        whole = model.kept_hidden is None and bool(model.masks.hidden.all())
        everything = slice(None), slice(None)
        self.dims: tuple[Any, Any] = everything if whole else model.living_hidden
        sizes = model.masks.sizes(model.encoder)
        self.pairs = layer_pairs(sizes, ctx.dense.encoder) if options.hidden else {}
        self.mixed_loss = MixedStateLoss.of(sizes, ctx.dense.encoder, self.dims, options.mixed)
        layers = tuple({*self.pairs.values(), *self.mixed_loss.pairs.values()})
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device)
        self.validation_rows = validation_rows(rows, ctx)
        self.validation_teacher = Teacher(self.teacher.module, (), ctx.device)

    def groups(self) -> list[dict[str, Any]]:
        """All weights except embedding tables; mux and demux have a higher learning rate."""
        return parameter_groups(self.module, self.options.lr)

    def loss(self, batch: Batch, progress: float, parallel: DataParallel = ALONE) -> Tensor:
        """The loss that the docstring of this module defines."""
        del progress
        aim, found = self.teacher.teach(batch), observe(self.module, batch, self.device)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        o, task = self.options, self.task
        off = divergence(
            found.logits,
            aim.logits,
            real,
            task,
            o.temperature,
            groups=batch.groups,
            labels=batch.labels,
            parallel=parallel,
        )
        total = o.logits * off
        if o.labels and batch.labels is not None:
            total = total + o.labels * label_error(found.logits, batch.labels, task, parallel)
        here, there = self.dims
        errors = [
            state_error(found.states[i][..., here], aim.states[j][..., there], real, parallel)
            for i, j in self.pairs.items()
        ]
        total = total + o.hidden * torch.stack(errors).mean() if errors else total
        mixed = self.mixed_loss.error(self.module, found, aim, real, parallel=parallel)
        return total + o.mixed * mixed

    def validation_loss(self) -> float:
        """Mean divergence from the given model's predictions on the select rows."""
        return mean_divergence(
            self.module, self.validation_teacher, self.validation_rows, self.task
        )
