"""The simulation of the promise, on made-up worlds."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.accuracy_model import fit
from prumux.optimizer.search.bisection import Trial
from prumux.optimizer.search.presets import progressive_schedule
from prumux.optimizer.search.progressive import SearchActions
from prumux.optimizer.search.progressive_certificates import search_progressively
from prumux.optimizer.tasks.classification import Classification
from tests.helpers.factory import random_model
from tests.helpers.scripts import script


@pytest.fixture(scope="module", name="script")
def _script() -> ModuleType:
    return script("guarantee")


def world(script: ModuleType, losses: list[float], rows: int = 4000) -> Any:
    """Candidates that err on so many more rows than a model that is right on nine of ten."""
    random = np.random.default_rng(0)
    labels = random.integers(2, size=rows)
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

    def recorded(part: slice) -> Any:
        truth = labels[part]
        answers = [np.where(x, truth, 1 - truth) for x in (found[:, part], dense[part])]
        margins = (2.0 + (x == truth) - random.random(x.shape) for x in answers)
        return script.Recorded(*answers, truth, *margins)

    parts = recorded(slice(half)), recorded(slice(half, None))
    macs = tuple(range(len(order) + 10, 10, -1))
    return script.Population(order, macs, *parts, Classification(("bad", "good")))


def test_the_promise_is_kept_even_where_every_candidate_sits_at_the_edge(
    script: ModuleType,
) -> None:
    edge = world(script, [0.023] * 8)
    found = script.simulate(edge, 0.02, rows=600, users=200)
    truly_bad = (edge.true_losses > 0.02).mean()
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


def test_a_budget_that_a_constant_answer_keeps_is_refused(script: ModuleType) -> None:
    """5 % positives and a model that is right on nine of ten: accuracy tells nothing."""
    given = world(script, [0.0, 0.001])
    rare = (np.random.default_rng(1).random(2000) < 0.05).astype(np.int64)
    right = given.rows.found == given.rows.labels, given.rows.dense == given.rows.labels
    answers = (np.where(x, rare, 1 - rare) for x in right)
    rows = script.Recorded(*answers, rare, given.rows.margins, given.rows.dense_margins)
    for metric, refused in (("accuracy", 1), ("balanced-accuracy", 0)):
        asked = replace(given, rows=rows, select=rows, metric=metric)
        found = script.simulate(asked, 0.02, rows=872, users=20)
        assert found["refused"] == refused
        assert (found["median_true_loss"] is None) == bool(refused)
        assert found["broken"] == 0


@pytest.mark.parametrize("rows", [872, 5000])
@pytest.mark.parametrize("bad", ["A", "B", "ABC"])
def test_whoever_is_bad_is_shipped_to_few(bad: str, rows: int) -> None:
    """Those that lose just more than the limit, beside others that lose nothing."""
    users, limit, changed = 300, 0.01, 0.03
    given = progressive_schedule("standard", limit, 3600.0, random_model("bert"), lowered=True)
    random = np.random.default_rng(0)
    fitted = partial(fit, rows=rows)

    def name(pipeline: Pipeline) -> str:
        return "AB"[given.fallbacks.index(pipeline)] if pipeline in given.fallbacks else "C"

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        loss = 1.02 * limit if name(pipeline) in bad else 0.0
        shares = (changed + loss) / 2, (changed - loss) / 2
        worse, better, _ = random.multinomial(rows, [*shares, 1 - changed])
        upper = accuracy_upper(rows, worse, better, confidence)
        return Certificate("accuracy", rows, 1, 1, 0, upper, confidence, limit, "tango")

    def trial(pipeline: Pipeline) -> Trial:
        return Trial(pipeline, 1.0, 0.0 if pipeline in given.fallbacks else 0.008, 1.0, 100)

    def broken() -> bool:
        done = iter([1.0])  # one cut, then no time is left
        hands = SearchActions(trial, prove, lambda _: [], lambda _, __: next(done, 0.0))
        winner = search_progressively(given, hands, limit, rows, fitted).winner
        return winner is not None and name(winner) in bad

    share = sum(broken() for _ in range(users)) / users
    assert share <= 0.05 + 2.5 * (0.05 * 0.95 / users) ** 0.5
