"""Cascades of random models."""

from __future__ import annotations

from dataclasses import replace

from prumux.optimizer.model.model import Model, SecondStage
from tests.helpers.factory import random_model


def cascade_of(
    threshold: float,
    *,
    first: Model | None = None,
    second: Model | None = None,
    share: float = 0.5,
    max_share: float = 1.0,
) -> Model:
    """A cascade of two random models of different depth and weights."""
    first = first or random_model(heads=(4, 4), head_dim=12)
    second = second or random_model(heads=(4, 4, 4), head_dim=12, seed=1)
    return replace(first, second=SecondStage(second, threshold, share, max_share))
