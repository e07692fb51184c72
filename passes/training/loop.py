"""The training loop that `distill`, `learn-masks` and `warm-up` share.

AdamW under bfloat16 autocast where the hardware has it; the learning rate rises linearly over
the first 5 % and falls linearly to zero. How far a run has come is counted in steps, or in
seconds where it has a time limit; only the former repeats exactly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.pipeline.context import Context

from .checkpoint import Run
from .parallel import Job, Make, crew
from .row_order import steps_of_epoch, stream
from .team import Team

RISE = 0.05
CHECKS = 8
DECAY = 0.01
LEAST_MINUTES = 1.0
LEAST_STEPS = 500
"""A shorter run is over before it pays to start other processes."""


@dataclass(frozen=True)
class Length:
    """How long to train: so many epochs, or so many minutes."""

    epochs: float | None
    minutes: float | None
    batch: int

    def share(self, step: int, seconds: float, each: int) -> float:
        """How much of it is over, 0 to 1, with `each` steps in an epoch."""
        if self.minutes is not None:
            return min(1.0, seconds / (60 * self.minutes))
        return min(1.0, step / ((self.epochs or 0) * each))

    def short(self, each: int) -> bool:
        """Whether one device is to train alone, with `each` steps in an epoch."""
        if self.minutes is not None:
            return self.minutes < LEAST_MINUTES
        return (self.epochs or 0) * each < LEAST_STEPS


class Learner(Protocol):
    """What is trained: every parameter of its groups, and nothing else."""

    slots: int
    """Rows that the model mixes into one."""

    def groups(self) -> list[dict[str, Any]]:
        """Parameter groups for the optimiser, each with its `lr`."""

    def loss(self, batch: Batch, share: float, team: Team) -> Tensor:
        """The scalar to descend, `share` of the way through.

        Of a team's share of a batch: what that adds to the loss of the whole batch.
        """

    def harm(self) -> float:
        """What the best checkpoint has least of, on rows that are not trained on."""


def train(
    learner: Learner,
    rows: Encoded,
    length: Length,
    ctx: Context,
    name: str,
    *,
    make: Make | None = None,
) -> dict[str, Any]:
    """Train in place and leave the best checkpoint in the learner's parameters.

    Args:
        learner: what is trained.
        rows: what it is trained on.
        length: epochs or minutes, and rows per batch.
        ctx: device, seed, progress; checkpoints go to its store, and stay: see `Store.drop`.
        name: of the checkpoints; tells everything that the result depends on.
        make: builds the same learner elsewhere, to train on all GPUs; None = on one device.

    Returns:
        Steps, seconds, the harm at every check, and devices if several, for the receipt.

    Raises:
        PassError: the loss is not a number.
        LostError: a process that trains along is gone.
    """
    run = _begun(learner, ctx, name)
    each = steps_of_epoch(len(rows), length.batch, learner.slots)
    job = Job(make, rows, length.batch, ctx) if make and not length.short(each) else None
    before, start = run.seconds, time.monotonic()
    task = ctx.progress.task(f"training, {len(rows)} rows", CHECKS)
    with task as tick, crew(job) as team:
        for _ in run.harm[1:]:
            tick()
        # killed after its last step and before the model was kept: nothing is left to train
        done = run.step > 0 and length.share(run.step, run.seconds, each) >= 1
        batches = stream(rows, length.batch, ctx.seed, run.step, learner.slots)
        for batch in () if done else batches:
            share = length.share(run.step, run.seconds, each)
            team.lead(run.step, share, run.trained)
            with autocast(ctx.device):
                loss = learner.loss(team.part(batch, learner.slots), share, team)
            run.descend(team, loss, max(1e-3, min(share / RISE, (1 - share) / (1 - RISE), 1)))
            run.seconds = before + time.monotonic() - start  # checks and all
            share = length.share(run.step, run.seconds, each)
            if share * CHECKS >= len(run.harm):
                run.keep(learner.harm())
                run.save(ctx.store, name)
                tick()
            if share >= 1:
                break
    for p, best in zip(run.trained, run.best, strict=True):
        p.data.copy_(best)
    return run.facts() | ({"devices": team.size} if team.size > 1 else {})


def _begun(learner: Learner, ctx: Context, name: str) -> Run:
    """A run at its start, or where it was when it was killed."""
    groups = [{**group, "peak": group["lr"]} for group in learner.groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=DECAY, fused=True)
    trained = [p for group in groups for p in group["params"]]
    run = Run(trained, optimizer, [p.detach().clone() for p in trained])
    run.load(ctx.store, name)
    if not run.harm:
        run.keep(learner.harm())  # so that training can only help
    return run
