"""Everything that a pass or a target may use besides the model."""

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
    """The members of `Target` that timing needs."""

    @property
    def timed_as(self) -> str:
        """The target's name in a costs file."""

    def draft(self) -> Exporter:
        """The same exporter with options that make `emit` quick."""

    def emit(self, model: Model, ctx: Context, folder: Path) -> Emitted:
        """Write the model into `folder`."""

    def engine(self, folder: Path, threads: int) -> Engine:
        """Load the emitted files."""


@dataclass(frozen=True)
class Context:
    """Data, device, seed and helpers of one run."""

    fit: Encoded
    """Rows for importance scores and refits. They are never used to certify."""
    workload: tuple[Batch, ...]
    """The batches of the serving point, for timings and parity checks."""
    dense: Model
    """The given model: the reference of refits, training and parity."""
    train: Encoded | None = None
    """All rows for training, `fit` included; None = `fit` only."""
    select: Encoded | None = None
    """Rows on which the best checkpoint is chosen. They are never used to certify."""
    target: Exporter | None = None
    """The target on which costs are measured; None = no timing is possible."""
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    progress: Progress = field(default_factory=Progress)
    store: Store = field(default_factory=Store)
    """Finished steps of this run."""
    cache: Store = field(default_factory=Store)
    """Measured costs of this machine, kept between runs."""
    costs: Costs | None = None
    """Times of the serving machine, from a file; None = times are measured here."""
    arrivals: Arrivals = "sorted"
    """The order in which the rows of the workload are served."""
    may_time: bool = True
    """False in a worker, because other processes would disturb its timings."""
    cores: CoreMonitor = field(default_factory=CoreMonitor)
    """Waits until threads run on cores near each other, before timed rounds."""

    @property
    def length(self) -> int:
        """Mean number of real tokens of a row at the serving point."""
        tokens = sum(int(b.attention_mask.sum()) for b in self.workload)
        return max(1, round(tokens / max(1, sum(len(b.rows) for b in self.workload))))

    def generator(self, user: object) -> torch.Generator:
        """A generator for one user of random numbers, such as a pass.

        The generator is seeded with the run's seed and the text of `user`. A pass must use no
        other source of randomness.
        """
        text = f"{self.seed}:{user}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:7])
        return torch.Generator().manual_seed(seed)

    def entry(self, name: str, *inputs: object) -> str:
        """The store's name for a step with these inputs: `name-DIGEST`.

        The digest covers the inputs, the seed and the version of torch:

        - of a model, its weights, sizes, task and masks
        - of encoded rows, the token ids and types
        - of a pass or target, its text
        - of any other value, its `repr`
        """
        parts = (_identity(x) for x in inputs)
        return f"{name}-{key(*parts, self.seed, torch.__version__)}"

    def cached(
        self, name: str, inputs: tuple[object, ...], make: Callable[[], Mapping[str, Tensor]]
    ) -> Mapping[str, Tensor]:
        """The tensors that `make` returns, computed once a run for the same inputs.

        Args:
            name: name of the tensors.
            inputs: all inputs of `make`, without the seed and torch; see `entry`.
            make: computes the tensors.
        """
        return self.store.tensors(self.entry(name, *inputs), make)

    def cached_json(
        self, name: str, inputs: tuple[object, ...], make: Callable[[], Any]
    ) -> Any:
        """Do the same as `cached` for a JSON value."""
        return self.store.json(self.entry(name, *inputs), make)


@lru_cache(maxsize=1)
def _weights_digest(model: Model) -> str:
    """The digest of a model. It is cached, because most entries contain the given model."""
    from prumux.optimizer.model.folder import digest

    return digest(model.weights, model.task, model.encoder)


def _identity(value: object) -> str:
    """A text that differs for any two values that may give different results."""
    if isinstance(value, Model):
        return f"{_weights_digest(value)} {value.masks.key()}"
    if isinstance(value, Encoded):
        parts = [value.ids] if value.types is None else [value.ids, value.types]
        return " ".join(
            hashlib.sha256(x.values.tobytes() + x.ends.tobytes()).hexdigest() for x in parts
        )
    return str(value) if isinstance(value, ConfigurableStep) else repr(value)
