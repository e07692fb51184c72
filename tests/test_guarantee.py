"""The simulation of the promise, on made-up worlds."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.pipeline import Pipeline
from tests.scripts import script


@pytest.fixture(scope="module", name="script")
def _script() -> ModuleType:
    return script("guarantee")


def world(script: ModuleType, losses: list[float], rows: int = 4000) -> Any:
    """Candidates that err on so many more rows than a model that is right on nine of ten."""
    random = np.random.default_rng(0)
    dense = random.random(rows) < 0.9
    flips = random.random((len(losses), rows))
    found = np.stack(
        [dense & (flip >= loss / 0.9) for flip, loss in zip(flips, losses, strict=True)]
    )
    order = tuple(
        Pipeline.parse(f"prune{{sparsity={0.1 + 0.05 * i:g}}},slice")
        for i in range(len(losses))
    )
    half = rows // 2
    return script.World(order, found[:, :half], dense[:half], found[:, half:], dense[half:])


def test_the_promise_is_kept_even_where_every_candidate_sits_at_the_edge(
    script: ModuleType,
) -> None:
    edge = world(script, [0.023] * 8)
    found = script.simulate(edge, 0.02, rows=600, users=200)
    truly_bad = (edge.true_loss > 0.02).mean()
    assert truly_bad > 0.5
    assert found["broken"] <= 0.09, "5 % plus two standard errors of 200 users and a bit"


def test_good_candidates_are_shipped(script: ModuleType) -> None:
    found = script.simulate(world(script, [0.0, 0.001, 0.001, 0.3]), 0.02, 872, users=50)
    assert found["exact_only"] == 0
    assert found["broken"] == 0
    assert found["median_true_loss"] < 0.01


def test_nothing_good_means_exact(script: ModuleType) -> None:
    found = script.simulate(world(script, [0.2, 0.3]), 0.02, 872, users=20)
    assert found["exact_only"] == 1
