"""The engines of a model: one, or one for each stage of a cascade.

    my-model-prumux/model.plan            a model of one stage
    my-model-prumux/first/model.plan      a cascade: every stage has a folder of its own,
    my-model-prumux/second/model.plan     with its graph, its engine and the facts of both

The graph of a cascade cannot be one engine: only the run of the first stage tells the number
of deferred rows. The parser of TensorRT for RTX 1.7 refuses such a node (NonZero).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.artifact import STAGES
from prumux.optimizer.model.model import Model

from .profiles import Profile, profiles


@dataclass(frozen=True, eq=False)
class EngineStage:
    """A model that becomes one engine."""

    model: Model
    """A model without a second stage."""
    place: str
    """Folder of the engine, relative to the result; empty = the result's own."""
    profiles: tuple[Profile, ...]

    def folder(self, result: Path) -> Path:
        """Folder of the engine in the folder of a result."""
        return result / self.place

    def path(self, name: str) -> str:
        """Path of one of the engine's files, relative to the result."""
        return f"{self.place}/{name}" if self.place else name


def engine_stages(model: Model, workload: Sequence[Batch]) -> tuple[EngineStage, ...]:
    """The engines to build for a model.

    Args:
        model: a model, with or without a second stage.
        workload: at least one batch at the serving point.
    """
    shapes = profiles(model.encoder, workload)
    if model.second is None:
        return (EngineStage(model, "", shapes),)
    share = model.second.cost_share
    first, second = STAGES
    return (
        EngineStage(replace(model, second=None), first, shapes),
        EngineStage(model.second.model, second, tuple(_deferred(x, share) for x in shapes)),
    )


def _deferred(profile: Profile, share: float) -> Profile:
    """The profile of the rows that are deferred of a batch: 1 to all, tuned for `share`."""
    _, tuned, most = profile.rows
    return Profile((1, max(1, math.ceil(share * tuned)), most), profile.tokens)
