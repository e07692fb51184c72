"""Trains a small model to agree with the dense one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.pipeline.context import Context
from prumux.passes.multiplexing.mixed_state_loss import MIXED_HELP, Between
from prumux.passes.training.layer_matching import layer_pairs
from prumux.passes.training.loop import train
from prumux.passes.training.losses import divergence, label_error, mean_divergence, state_error
from prumux.passes.training.teacher import Teacher, observe, teacher
from prumux.passes.training.team import ALONE, Team
from prumux.passes.training.training_pass import Taught

TABLES = (
    "embeddings.word.weight",
    "embeddings.position.weight",
    "embeddings.token_type.weight",
)
"""Not trained: rows that the data does not touch would drift apart from the rest."""
CHECK_ROWS = 1024
MUX_RATE = 3.0
"""Learning rate of mux and demux over that of the rest."""


@dataclass(frozen=True)
class Distill(Taught):
    """Train the small model to give the dense model's logits and hidden states.

    loss = hidden * mean over layers of |s - t|^2 / |t - mean t|^2
         + mixed * the same of mixed rows, see `mixed_error`
         + logits * T^2 KL(t at T || s at T) + labels * cross-entropy

    with s the student's and t the dense model's; for regression, squared errors. Made-up rows
    (`augment`) have no labels.
    """

    name: ClassVar[str] = "distill"
    labels: float = field(default=0.3, metadata={"help": "weight of the labels"})
    mixed: float = field(default=1.0, metadata={"help": MIXED_HELP})

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_not_below_zero("labels", "mixed")
        if not self.hidden + self.logits + self.labels:
            raise ValueError("hidden, logits and labels are all 0: nothing would be learnt")

    def sketch(self) -> None:
        """Shapes stay."""

    def run(self, model: Model, ctx: Context) -> Model:
        """The same sizes with other weights; embedding tables stay as they are."""
        rows = self.rows(ctx)
        make = partial(Student, model, self, rows)
        student = make(ctx=ctx)
        name = ctx.entry("distill", self, model, len(rows))
        facts = train(student, rows, self.length, ctx, name, make=make)
        return replace(model, weights=weights_of(student.module), notes=facts)


class Student:
    """A model, and how far it is from the dense one."""

    def __init__(self, model: Model, options: Distill, rows: Encoded, ctx: Context) -> None:
        self.options, self.device, self.task = options, ctx.device, model.task
        self.module, self.slots = trainable(model, ctx.device), model.encoder.slots
        whole = model.kept_hidden is None and bool(model.masks.hidden.all())
        everything = slice(None), slice(None)
        self.dims: tuple[Any, Any] = everything if whole else model.living_hidden
        sizes = model.masks.sizes(model.encoder)
        self.pairs = layer_pairs(sizes, ctx.dense.encoder) if options.hidden else {}
        self.between = Between.of(sizes, ctx.dense.encoder, self.dims, options.mixed)
        layers = tuple({*self.pairs.values(), *self.between.pairs.values()})
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device)
        self.checks = check_rows(rows, ctx)
        self.judge = Teacher(self.teacher.module, (), ctx.device)

    def groups(self) -> list[dict[str, Any]]:
        """All but the embedding tables, at one learning rate."""
        return groups(self.module, self.options.lr)

    def loss(self, batch: Batch, share: float, team: Team = ALONE) -> Tensor:
        """See `Distill`."""
        del share
        aim, found = self.teacher.teach(batch), observe(self.module, batch, self.device)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        o, task = self.options, self.task
        off = divergence(found.logits, aim.logits, real, task, o.temperature, team=team)
        total = o.logits * off
        if o.labels and batch.labels is not None:
            total = total + o.labels * label_error(found.logits, batch.labels, task, team)
        here, there = self.dims
        errors = [
            state_error(found.states[i][..., here], aim.states[j][..., there], real, team)
            for i, j in self.pairs.items()
        ]
        total = total + o.hidden * torch.stack(errors).mean() if errors else total
        return total + o.mixed * self.between.error(self.module, found, aim, real, team=team)

    def harm(self) -> float:
        """Mean divergence from the dense predictions on the select rows."""
        return mean_divergence(self.module, self.judge, self.checks, self.task)


def trainable(model: Model, device: str) -> EncoderModule:
    """A copy of the model in which all is trained but embedding tables and fixed keys."""
    copied = {name: tensor.clone() for name, tensor in model.weights.items()}
    module = EncoderModule(replace(model, weights=copied)).to(device)
    mux = model.encoder.mux
    still = TABLES if mux is None or mux.variant == "learned" else (*TABLES, "mux.keys")
    for name, p in module.named_parameters():
        p.requires_grad = name not in still
    return module


def groups(module: EncoderModule, lr: float) -> list[dict[str, Any]]:
    """What is trained, and how fast: mux and demux, which start from nothing, faster."""
    old, new = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in module.named_parameters():
        if p.requires_grad:
            (new if name.startswith(("mux.", "demux.")) else old).append(p)
    found = [{"params": old, "lr": lr}, {"params": new, "lr": lr * MUX_RATE}]
    return [group for group in found if group["params"]]


def weights_of(module: EncoderModule) -> dict[str, Tensor]:
    """Every weight, on the CPU."""
    return {k: p.detach().cpu().clone() for k, p in module.named_parameters()}


def check_rows(rows: Encoded, ctx: Context) -> Encoded:
    """What checkpoints are compared on: select rows, or where there are none `rows`."""
    rows = rows if ctx.select is None else ctx.select
    return rows.take(range(min(CHECK_ROWS, len(rows))))
