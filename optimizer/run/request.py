"""The options of one run, checked."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.base.paths import check_name
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.data.predict import ARRIVALS, Arrivals
from prumux.optimizer.search.presets import EFFORTS, Effort
from prumux.optimizer.workers.workers import Workers


@dataclass(frozen=True)
class Request:
    """The options of one run, as the user gave them.

    Raises:
        UsageError: a value has a wrong type or range; the message names the option.
    """

    model: str
    budget: Budget | None = None
    passes: str | None = None
    out: Path | None = None
    data: str | None = None
    train: str | None = None
    validation: str | None = None
    test: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """The model's class for each label value of the data."""
    certify_on_train: bool = False
    """True if rows of the train split may certify, although a model memorises them."""
    pooling: str | None = None
    """Pooling, such as `mean`, that turns an encoder without a head into an embedding
    model."""
    dimensions: int | None = None
    """Number of leading entries to keep of an embedding model's vectors."""
    stride: int | None = None
    """Number of tokens that two windows of a context share, for question answering."""
    target: str = "onnx"
    metric: str | None = None
    batch: int | None = None
    """Number of rows in a batch; None = the number in `costs`, or 32 without `costs`."""
    length: int | None = None
    costs: str | None = None
    """A file of `prumux-bench --measure-costs`, with times of the serving machine."""
    arrivals: Arrivals = "sorted"
    """Order in which rows reach the engine, for timings and certificates."""
    device: str = "auto"
    seed: int = 0
    effort: Effort = "quick"
    time_limit_s: float | None = None
    workers: int | str = 1
    """Number of processes on this machine, or the address of a Ray cluster."""
    resume: bool = False
    force: bool = False
    keep_answers: bool = True
    """True if the result contains texts of certify rows with the certified answers."""
    command: str = ""

    def __post_init__(self) -> None:
        for name in ("seed", "batch", "length", "dimensions", "stride"):
            value, least = getattr(self, name), int(name != "seed")
            whole = isinstance(value, int) and not isinstance(value, bool)
            if not (name != "seed" and value is None) and not (
                whole and least <= value < 2**63
            ):
                raise UsageError(f"{name} is {value!r}, give a whole number from {least}")
        texts = (
            *("model", "passes", "data", "train", "validation", "test", "target", "costs"),
            "pooling",
        )
        for name in texts:
            value = getattr(self, name)
            optional = name not in ("model", "target")
            if not (optional and value is None) and not (isinstance(value, str) and value):
                raise UsageError(f"{name} is {value!r}, it must be a text that is not empty")
        paths = (self.model, self.data, self.train, self.validation, self.test)
        for given in (*paths, self.costs, self.out):
            check_name(given)
        if not isinstance(self.certify_on_train, bool):
            raise UsageError(
                f"certify_on_train is {self.certify_on_train!r}, it must be True or False"
            )
        if self.effort not in EFFORTS:
            raise UsageError(
                f"effort is {self.effort!r}, it must be one of {', '.join(EFFORTS)}"
            )
        if self.arrivals not in ARRIVALS:
            raise UsageError(
                f"arrivals is {self.arrivals!r}, it must be one of {', '.join(ARRIVALS)}"
            )
        if self.arrivals == "mixed" and self.length is not None:
            raise UsageError(
                f"--arrivals mixed serves rows of different lengths, --length {self.length} "
                "makes all of one length\nleave one of them out"
            )
        Workers.parse(self.workers).check_device(self.device)
        limit = self.time_limit_s
        if limit is not None and not (isinstance(limit, int | float) and 0 < limit < math.inf):
            raise UsageError(f"time_limit_s is {limit!r}, give seconds, such as 1800")
        if not isinstance(self.columns, Mapping):
            raise UsageError(f"columns is {self.columns!r}, write {{'text_a': 'question'}}")
        if not isinstance(self.labels, Mapping):
            raise UsageError(f"labels is {self.labels!r}, write {{'0': 'positive'}}")

    @property
    def progressive(self) -> bool:
        """True if the search is the default progressive schedule."""
        return self.budget is not None and self.passes is None and self.effort != "quick"

    @property
    def folder(self) -> Path:
        """Folder of the result: `--out`, or `MODEL-prumux` in the current folder."""
        if self.out is not None:
            return self.out
        path = Path(self.model)
        if path.name in ("", ".."):  # such as `.`, the current folder
            path = path.resolve()
        name = path.stem if path.is_file() else path.name or "model"
        found = f"{name}-prumux"
        check_name(found)
        return Path(found)
