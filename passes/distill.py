"""Trains a small model to agree with the dense one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from prumux.optimizer.context import Context
from prumux.optimizer.encode import Batch, Encoded, batches
from prumux.optimizer.ir import Model, Task
from prumux.optimizer.metrics import IGNORE
from prumux.optimizer.module import EncoderModule
from prumux.optimizer.passbase import Pass
from prumux.optimizer.store import key

from .teacher import Teacher, layer_pairs, observe, teacher
from .training import Length, train

TABLES = (
    "embeddings.word.weight",
    "embeddings.position.weight",
    "embeddings.token_type.weight",
)
"""Not trained: rows that the data does not touch would drift apart from the rest."""
EPOCHS = 3.0
CHECK_ROWS = 1024


@dataclass(frozen=True)
class Distill(Pass):
    """Train the small model to give the dense model's logits and hidden states.

    loss = hidden * mean over layers of |s - t|^2 / |t - mean t|^2
         + logits * T^2 KL(t at T || s at T) + labels * cross-entropy

    with s the student's and t the dense model's; for regression, squared errors.
    """

    name: ClassVar[str] = "distill"
    shapes: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    epochs: float | None = field(default=None, metadata={"help": "passes over the rows"})
    minutes: float | None = field(default=None, metadata={"help": "in place of epochs"})
    lr: float = field(default=3e-4, metadata={"help": "highest learning rate"})
    batch: int = field(default=64, metadata={"help": "rows per step"})
    temperature: float = field(default=2.0, metadata={"help": "T of the logits' softmax"})
    hidden: float = field(default=1.0, metadata={"help": "weight of the hidden states"})
    logits: float = field(default=1.0, metadata={"help": "weight of the logits"})
    labels: float = field(default=0.3, metadata={"help": "weight of the labels"})

    def __post_init__(self) -> None:
        if self.epochs is not None and self.minutes is not None:
            raise ValueError("epochs and minutes exclude each other; give one")
        for name in ("epochs", "minutes", "lr", "batch", "temperature"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
        for name in ("hidden", "logits", "labels"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not self.hidden + self.logits + self.labels:
            raise ValueError("hidden, logits and labels are all 0: nothing would be learnt")

    def run(self, model: Model, ctx: Context) -> Model:
        """The same sizes with other weights; embedding tables stay as they are."""
        from prumux.optimizer.source import digest

        rows = ctx.fit if ctx.train is None else ctx.train
        student = Student(model, self, rows, ctx)
        epochs = EPOCHS if self.epochs is None and self.minutes is None else self.epochs
        given = digest(model.weights, model.task, model.encoder)
        name = "distill-" + key(self, given, len(rows), ctx.seed, torch.__version__)
        facts = train(student, rows, Length(epochs, self.minutes, self.batch), ctx, name)
        return replace(model, weights=student.weights(), notes=facts)


class Student:
    """A model, and how far it is from the dense one."""

    def __init__(self, model: Model, options: Distill, rows: Encoded, ctx: Context) -> None:
        self.options, self.device, self.task = options, ctx.device, model.task
        copied = {name: tensor.clone() for name, tensor in model.weights.items()}
        self.module = EncoderModule(replace(model, weights=copied)).to(ctx.device)
        for name, p in self.module.named_parameters():
            p.requires_grad = name not in TABLES
        whole = model.kept_hidden is None and bool(model.masks.hidden.all())
        everything = slice(None), slice(None)
        self.dims: tuple[Any, Any] = everything if whole else model.living_hidden
        sizes = model.masks.sizes(model.encoder)
        self.pairs = layer_pairs(sizes, ctx.dense.encoder) if options.hidden else {}
        layers = tuple(self.pairs.values())
        self.teacher = teacher(ctx.dense, rows, layers, ctx.device)
        self.checks = rows if ctx.select is None else ctx.select
        self.checks = self.checks.take(range(min(CHECK_ROWS, len(self.checks))))
        self.judge = Teacher(self.teacher.module, (), ctx.device)

    def groups(self) -> list[dict[str, Any]]:
        """All but the embedding tables, at one learning rate."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        return [{"params": trained, "lr": self.options.lr}]

    def loss(self, batch: Batch, share: float) -> Tensor:
        """See `Distill`."""
        del share
        aim, found = self.teacher.teach(batch), observe(self.module, batch, self.device)
        real = torch.as_tensor(batch.attention_mask).to(self.device).bool()
        o, task = self.options, self.task
        total = o.logits * divergence(found.logits, aim.logits, real, task, o.temperature)
        if o.labels and batch.labels is not None:
            total = total + o.labels * _wrong(found.logits, batch.labels, task)
        here, there = self.dims
        errors = [
            state_error(found.states[i][..., here], aim.states[j][..., there], real)
            for i, j in self.pairs.items()
        ]
        return total + o.hidden * torch.stack(errors).mean() if errors else total

    def harm(self) -> float:
        """Mean divergence from the dense predictions on the select rows."""
        return mean_divergence(self.module, self.judge, self.checks, self.task)

    def weights(self) -> dict[str, Tensor]:
        """Every weight, on the CPU."""
        return {k: p.detach().cpu().clone() for k, p in self.module.named_parameters()}


def mean_divergence(module: EncoderModule, judge: Teacher, rows: Encoded, task: Task) -> float:
    """Mean divergence of a module from the teacher's predictions for `rows`."""
    total = 0.0
    with torch.no_grad():
        for batch in batches(rows, 64):
            found, aim = observe(module, batch, judge.device), judge.teach(batch)
            real = torch.as_tensor(batch.attention_mask).to(judge.device).bool()
            off = divergence(found.logits, aim.logits, real, task, 1.0)
            total += float(off) * len(batch.rows)
    return total / len(rows)


def divergence(
    found: Tensor, aim: Tensor, real: Tensor, task: Task, temperature: float
) -> Tensor:
    """T^2 KL(aim at T || found at T), or squared error, per row or real position."""
    if found.dim() == 3:
        found, aim = found[real], aim[real]
    if task.problem == "regression":
        return F.mse_loss(found.float(), aim.float())
    t = temperature
    wanted = torch.log_softmax(aim.float() / t, -1)
    got = torch.log_softmax(found.float() / t, -1)
    return t * t * F.kl_div(got, wanted, log_target=True, reduction="batchmean")


def state_error(found: Tensor, aim: Tensor, real: Tensor) -> Tensor:
    """Squared error of hidden states at real positions over their variance; scalar."""
    positions = min(found.shape[1], aim.shape[1])
    real = real[:, :positions]
    s, t = found[:, :positions][real].float(), aim[:, :positions][real].float()
    return F.mse_loss(s, t) / (t.var(0, correction=0).mean() + 1e-6)


def _wrong(logits: Tensor, labels: Any, task: Task) -> Tensor:
    labels = torch.as_tensor(labels).to(logits.device)
    if task.problem == "regression":
        return F.mse_loss(logits.float().squeeze(-1), labels.float())
    return F.cross_entropy(
        logits.float().flatten(0, -2), labels.flatten(), ignore_index=IGNORE
    )
