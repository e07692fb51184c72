"""Everything that a pass or a target may consult besides the model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.data.predict import Arrivals
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.model import Model

from .configurable import ConfigurableStep
from .costs import Costs
from .engine import Emitted, Engine


class Exporter(Protocol):
    """The part of a target that timing needs; see `Target`."""

    @property
    def timed_as(self) -> str:
        """Name under which a costs file holds its times."""

    def draft(self) -> Exporter:
        """The exporter with options that make `emit` quick."""

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write the model into `folder`."""

    def engine(self, folder: Path, threads: int) -> Engine:
        """Load the emitted files."""


@dataclass(frozen=True)
class Context:
    """Data, device, seed and helpers of one run."""

    fit: Encoded
    """Rows for scores and refits; no result is ever certified on them."""
    workload: tuple[Batch, ...]
    """The serving point: the batches of timings and parity checks."""
    dense: Model
    """The given model: the aim of refits, training and parity."""
    train: Encoded | None = None
    """All rows for training, `fit` among them; None = `fit` only."""
    select: Encoded | None = None
    """Rows that pick the best checkpoint; nothing is certified on them."""
    target: Exporter | None = None
    """The target that costs are measured on; None = no timing is possible."""
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    progress: Progress = field(default_factory=Progress)
    store: Store = field(default_factory=Store)
    """Finished steps of this run."""
    cache: Store = field(default_factory=Store)
    """Measured costs of this machine, kept between runs."""
    costs: Costs | None = None
    """Times of the machine that will serve; None = times are measured here."""
    arrivals: Arrivals = "sorted"
    """The order in which the rows of the workload are served."""
    may_time: bool = True
    """False in a worker, where other processes would disturb timings."""
    cores: CoreMonitor = field(default_factory=CoreMonitor)
    """Waits for near cores before timed rounds."""

    @property
    def length(self) -> int:
        """Mean number of real tokens a row at the serving point."""
        tokens = sum(int(b.attention_mask.sum()) for b in self.workload)
        return max(1, round(tokens / max(1, sum(len(b.rows) for b in self.workload))))

    def generator(self, user: object) -> torch.Generator:
        """A pass's only source of randomness, seeded by the run's seed and the pass's text."""
        text = f"{self.seed}:{user}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7])
        return torch.Generator().manual_seed(seed)

    def entry(self, name: str, *inputs: object) -> str:
        """The store's name for a step with these inputs: `name-DIGEST`.

        The digest covers the inputs, the seed and the version of torch. A model counts with
        its weights, sizes, task and masks, encoded rows with token ids and types, a pass
        or target with its text, any other value with its `repr`.
        """
        parts = (_identity(x) for x in inputs)
        return f"{name}-{key(*parts, self.seed, torch.__version__)}"

    def cached(
        self, name: str, inputs: tuple[object, ...], make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors that `make` returns, computed once a run for the same inputs.

        Args:
            name: what the tensors are.
            inputs: everything that they depend on besides seed and torch; see `entry`.
            make: computes them.
        """
        return self.store.tensors(self.entry(name, *inputs), make)

    def cached_json(
        self, name: str, inputs: tuple[object, ...], make: Callable[[], Any]
    ) -> Any:
        """As `cached`, for a JSON value."""
        return self.store.json(self.entry(name, *inputs), make)


@lru_cache(maxsize=1)
def _weights_digest(model: Model) -> str:
    """The digest of a model, which does not change: the given one is asked for every time."""
    from prumux.optimizer.model.folder import digest

    return digest(model.weights, model.task, model.encoder)


def _identity(value: object) -> str:
    """A text that differs wherever a result might."""
    if isinstance(value, Model):
        return f"{_weights_digest(value)} {value.masks.key()}"
    if isinstance(value, Encoded):
        parts = [value.ids] if value.types is None else [value.ids, value.types]
        return " ".join(
            hashlib.sha256(x.values.tobytes() + x.ends.tobytes()).hexdigest() for x in parts
        )
    return str(value) if isinstance(value, ConfigurableStep) else repr(value)
