"""Where a training run is: parameters, moments, the best so far; saved and read back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.store import Store

from .team import Team

CLIP = 1.0
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class Run:
    """Where a run is. `best` holds the parameters that were least harmful so far."""

    trained: list[nn.Parameter]
    optimizer: torch.optim.AdamW
    best: list[Tensor]
    step: int = 0
    seconds: float = 0.0
    harm: list[float] = field(default_factory=list)

    def descend(self, team: Team, loss: Tensor, rate: float) -> None:
        """One step, at a share of every group's highest learning rate."""
        team.backward(loss, self.trained)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * rate
            nn.utils.clip_grad_norm_(group["params"], CLIP)
        self.optimizer.step()
        self.step += 1

    def facts(self) -> dict[str, Any]:
        """Plain values, for receipts and checkpoints."""
        return {"step": self.step, "seconds": self.seconds, "harm": self.harm}

    def keep(self, harm: float) -> None:
        """Note how harmful the parameters are now, and remember them if they are the best.

        Raises:
            PassError: the harm is not a number.
        """
        if not math.isfinite(harm):
            raise PassError(
                f"training diverged: the loss is {harm} after {self.step} steps\n"
                "use a smaller lr, such as lr=1e-4",
                exit_code=2,
            )
        self.harm.append(harm)
        if harm == min(self.harm):
            self.best = [p.detach().clone() for p in self.trained]

    def save(self, store: Store, name: str) -> None:
        """Write a checkpoint."""
        moments = [self.optimizer.state.get(p) or _unmoved(p) for p in self.trained]
        found: dict[str, Tensor] = {}
        for i, (p, best, state) in enumerate(
            zip(self.trained, self.best, moments, strict=True)
        ):
            found |= {f"now.{i}": p.detach(), f"best.{i}": best}
            found |= {f"{part}.{i}": state[part] for part in MOMENTS}
        store.save(name, found, self.facts())

    def load(self, store: Store, name: str) -> None:
        """Go on from a checkpoint, if there is one."""
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
        self.step, self.seconds, self.harm = facts["step"], facts["seconds"], facts["harm"]


def _unmoved(p: nn.Parameter) -> dict[str, Tensor]:
    """The moments of a parameter that has had no gradient yet."""
    return {
        part: torch.zeros(()) if part == "step" else torch.zeros_like(p) for part in MOMENTS
    }
