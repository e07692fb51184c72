"""The training loop of `distill`, `learn-masks` and `warm-up`.

The optimiser is AdamW (Loshchilov and Hutter, https://arxiv.org/abs/1711.05101), with bfloat16
autocast on hardware that supports it. The learning rate rises linearly over the first 5 % of
the run, then falls linearly to zero. Progress is counted in steps, or in seconds if the run
has a time limit. Only runs that count steps repeat exactly.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.pipeline.context import Context

from .checkpoint import TrainingState
from .learner import Learner, LearnerFactory
from .row_order import steps_of_epoch, stream
from .worker_processes import ParallelJob, processes

RISE = 0.05
"""Share of the run in which the learning rate rises."""
CHECKS = 8
"""Number of checkpoints of a run, evenly spaced."""
WEIGHT_DECAY = 0.01
LEAST_MINUTES = 1.0
LEAST_STEPS = 500
"""Runs with fewer steps use one device: starting other processes would take longer."""


@dataclass(frozen=True)
class TrainingSchedule:
    """Length of training, in epochs or in minutes, and the number of rows of a batch."""

    epochs: float | None
    minutes: float | None
    batch: int

    def progress(self, step: int, seconds: float, epoch_steps: int) -> float:
        """The finished share of the run, 0 to 1."""
        if self.minutes is not None:
            return min(1.0, seconds / (60 * self.minutes))
        return min(1.0, step / ((self.epochs or 0) * epoch_steps))

    def short(self, epoch_steps: int) -> bool:
        """True if the run is too short for several devices."""
        if self.minutes is not None:
            return self.minutes < LEAST_MINUTES
        return (self.epochs or 0) * epoch_steps < LEAST_STEPS


def train(
    learner: Learner,
    rows: Encoded,
    length: TrainingSchedule,
    ctx: Context,
    name: str,
    *,
    make: LearnerFactory | None = None,
) -> dict[str, Any]:
    """Train in place and leave the best checkpoint in the learner's parameters.

    Args:
        learner: the model and its loss.
        rows: the training rows.
        length: epochs or minutes, and rows per batch.
        ctx: device, seed, progress, and the store for checkpoints. Checkpoints stay in the
            store, see `Store.drop`.
        name: name of the checkpoints: a key of everything that the result depends on.
        make: builds the same learner in other processes, to train on all GPUs; None = train on
            one device.

    Returns:
        Facts for the model's history: steps, seconds, the validation loss at every check, and
        the number of devices if there are several.

    Raises:
        PassError: the loss is not finite.
        LostError: another process of the training is gone.
    """
    state = _first_state(learner, ctx, name)
    epoch_steps = steps_of_epoch(len(rows), length.batch, learner.slots)
    alone = make is None or length.short(epoch_steps)
    job = None if make is None or alone else ParallelJob(make, rows, length.batch, ctx)
    before, start = state.seconds, time.monotonic()
    task = ctx.progress.task(f"training, {len(rows)} rows", CHECKS)
    with task as tick, processes(job) as parallel:
        for _ in state.validation_loss[1:]:
            tick()
        # A run may have been killed after its last step, before its result was stored.
        over = state.step > 0 and length.progress(state.step, state.seconds, epoch_steps) >= 1
        batches = stream(rows, length.batch, ctx.seed, state.step, learner.slots)
        for batch in () if over else batches:
            progress = length.progress(state.step, state.seconds, epoch_steps)
            parallel.share_step(state.step, progress, state.trained)
            with autocast(ctx.device):
                share = parallel.part(batch, learner.slots)
                loss = learner.loss(share, progress, parallel)
            state.update(parallel, loss, _rate(progress))
            state.seconds = before + time.monotonic() - start  # checks included
            progress = length.progress(state.step, state.seconds, epoch_steps)
            if progress * CHECKS >= len(state.validation_loss):
                state.check(learner.validation_loss())
                state.save(ctx.store, name)
                tick()
            if progress >= 1:
                break
    for p, best in zip(state.trained, state.best, strict=True):
        p.data.copy_(best)
    return state.facts() | ({"devices": parallel.size} if parallel.size > 1 else {})


def _rate(progress: float) -> float:
    """Factor on the highest learning rate. It rises linearly, then falls linearly."""
    return max(1e-3, min(progress / RISE, (1 - progress) / (1 - RISE), 1))


def _first_state(learner: Learner, ctx: Context, name: str) -> TrainingState:
    """The state of a run at its start, or at the checkpoint of a killed run."""
    groups = [{**group, "peak": group["lr"]} for group in learner.groups()]
    optimizer = torch.optim.AdamW(groups, weight_decay=WEIGHT_DECAY, fused=True)
    trained = [p for group in groups for p in group["params"]]
    state = TrainingState(trained, optimizer, [p.detach().clone() for p in trained])
    state.load(ctx.store, name)
    if not state.validation_loss:
        state.check(learner.validation_loss())  # the given weights are the first checkpoint
    return state
