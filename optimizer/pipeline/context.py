"""All that a pass or a target may consult besides the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.tokenize import Batch, Encoded

if TYPE_CHECKING:
    from prumux.optimizer.model.ir import Model

    from .passes import Pass
    from .target import Target


@dataclass(frozen=True)
class Context:
    """Data, device, seed and helpers of one run."""

    fit: Encoded
    """Rows for scores and refits; no result is ever certified on them."""
    workload: tuple[Batch, ...]
    """The serving point: batches that timings and parity checks run."""
    dense: Model
    """The model as it was given: what refits, training and parity aim at."""
    train: Encoded | None = None
    """All rows that may be trained on, `fit` among them; None = `fit` is all there is."""
    select: Encoded | None = None
    """Rows that pick the best checkpoint; nothing is certified on them."""
    target: Target | None = None
    """Where measured costs come from; None = no timing is possible."""
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    progress: Progress = field(default_factory=Progress)
    store: Store = field(default_factory=Store)
    """Finished steps of this run."""
    cache: Store = field(default_factory=Store)
    """Measured costs of this machine, kept between runs."""
    may_time: bool = True
    """Whether shapes may be timed; not in a worker, beside which others are at work."""

    @property
    def length(self) -> int:
        """Mean number of real tokens a row at the serving point."""
        tokens = sum(int(b.attention_mask.sum()) for b in self.workload)
        return max(1, round(tokens / max(1, sum(len(b.rows) for b in self.workload))))

    def generator(self, user: Pass) -> torch.Generator:
        """A pass's only source of randomness, seeded by the run's seed and the pass's text."""
        import hashlib

        text = f"{self.seed}:{user}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7])
        return torch.Generator().manual_seed(seed)
