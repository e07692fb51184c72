"""The state of a training run, saved to and loaded from checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.store import Store

from .data_parallel import DataParallel

MAX_GRADIENT_NORM = 1.0
"""Gradients of a parameter group are clipped to this L2 norm."""
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainingState:
    """The step of a run, and the parameters with the least validation loss so far."""

    trained: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    best: list[Tensor]
    step: int = 0
    seconds: float = 0.0
    validation_loss: list[float] = field(default_factory=list)
    """The loss at every check. The first check is before the first step."""

    def update(self, parallel: DataParallel, loss: Tensor, rate: float) -> None:
        """Take one step; `rate` is a factor on every group's highest learning rate."""
        parallel.backward(loss, self.trained)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
            nn.utils.clip_grad_norm_(group["params"], MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.step += 1

    def facts(self) -> dict[str, Any]:
        """Step, seconds and losses as plain values, for model histories and checkpoints."""
        return {
            "step": self.step,
            "seconds": self.seconds,
            "validation_loss": self.validation_loss,
        }

    def check(self, validation_loss: float) -> None:
        """Record a validation loss, and keep the parameters if it is the least so far.

        Raises:
            PassError: the loss is not finite.
        """
        if not math.isfinite(validation_loss):
            raise PassError(
                f"training diverged: the loss is {validation_loss} after {self.step} steps\n"
                "use a smaller lr, such as lr=1e-4",
                exit_code=2,
            )
        self.validation_loss.append(validation_loss)
        if validation_loss == min(self.validation_loss):
            self.best = [p.detach().clone() for p in self.trained]

    def save(self, store: Store, name: str) -> None:
        """Write a checkpoint."""
        moments = [self.optimizer.state.get(p) or _zero_moments(p) for p in self.trained]
        found: dict[str, Tensor] = {}
        for i, (p, best, state) in enumerate(
            zip(self.trained, self.best, moments, strict=True)
        ):
            found |= {f"now.{i}": p.detach(), f"best.{i}": best}
            found |= {f"{part}.{i}": state[part] for part in MOMENTS}
        store.save(name, found, self.facts())

    def load(self, store: Store, name: str) -> None:
        """Load the state from a checkpoint. Without a checkpoint nothing changes."""
        saved = store.load(name)
        if saved is None:
            return
        found, facts = saved
        for i, p in enumerate(self.trained):
            p.data.copy_(found[f"now.{i}"])
            self.best[i] = found[f"best.{i}"].to(p.device)
            self.optimizer.state[p] = {
                part: found[f"{part}.{i}"].to(p.device) for part in MOMENTS
            }
        self.step, self.seconds = facts["step"], facts["seconds"]
        self.validation_loss = facts["validation_loss"]


def _zero_moments(p: nn.Parameter) -> dict[str, Tensor]:
    """The moments of a parameter that has had no gradient yet."""
    return {
        part: torch.zeros(()) if part == "step" else torch.zeros_like(p) for part in MOMENTS
    }
