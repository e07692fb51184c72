"""Losses on select rows, weighted to be as hard for the given model as unseen rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.unseen_loss import (
    BINS,
    TRAINED,
    GivenAnswers,
    LossEstimate,
    ends_trained,
    estimate_loss,
    unseen_weights,
)
from prumux.optimizer.tasks.classification import Classification

TASK = Classification(("bad", "good"))
Sample = tuple[GivenAnswers, np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]


def sample(rows: int, sure: float, seed: int) -> Sample:
    """Draw answers of a given model and of a candidate, and labels.

    The given model is right more often the larger its margin is. The candidate changes answers
    of small margins. `sure` scales the margins: training rows have larger ones.
    """
    random = np.random.default_rng(seed)
    margins = sure * random.exponential(2.0, rows)
    right = random.random(rows) < 0.5 + 0.5 * np.minimum(margins / 3, 1)
    changed = random.random(rows) < np.exp(-margins)
    labels = random.integers(2, size=rows)
    dense = np.where(right, labels, 1 - labels)
    return GivenAnswers(margins, right), dense, np.where(changed, 1 - dense, dense), labels


def test_the_estimate_is_nearer_to_the_loss_on_unseen_rows_than_that_on_select_rows() -> None:
    select, dense, found, labels = sample(40_000, 2.0, 0)
    unseen, dense_there, found_there, labels_there = sample(40_000, 1.0, 1)
    truth = float((dense_there == labels_there).mean() - (found_there == labels_there).mean())
    observed = float((dense == labels).mean() - (found == labels).mean())
    weights = unseen_weights(select, unseen)
    made = estimate_loss(TASK, "accuracy", dense, found, labels, weights)
    assert abs(made.loss - truth) < 0.2 * abs(observed - truth)
    there = (dense_there == labels_there) != (found_there == labels_there)
    assert made.changed == pytest.approx(there.mean(), rel=0.1)
    assert 0.3 * len(weights) < made.rows < len(weights)


def test_rows_like_the_select_rows_give_the_observed_loss() -> None:
    select, dense, found, labels = sample(500, 1.0, 0)
    made = estimate_loss(
        TASK, "accuracy", dense, found, labels, unseen_weights(select, select)
    )
    assert made.loss == pytest.approx((dense == labels).mean() - (found == labels).mean())
    assert made.rows == pytest.approx(500)


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0.1, 10), st.integers(0, 99))
def test_weights_have_mean_one_and_the_strata_of_unseen_rows(
    rows: int, other: int, sure: float, seed: int
) -> None:
    select, unseen = sample(rows, sure, seed)[0], sample(other, 1.0, seed + 1)[0]
    weights = unseen_weights(select, unseen)
    assert weights.shape == (rows,)
    assert weights.min() >= 0
    assert weights.mean() == pytest.approx(1)
    edges = np.quantile(unseen.margins, np.linspace(0, 1, BINS + 1)[1:-1])
    here, there = select.strata(edges), unseen.strata(edges)
    both = np.isin(there, here)
    if both.any():  # strata that only one side has cannot be matched
        for h in np.unique(there[both]):
            share = weights[here == h].sum() / weights.sum()
            assert share == pytest.approx((there == h).sum() / both.sum())


def test_a_given_model_that_is_always_right_on_select_rows() -> None:
    margins = np.arange(10.0)
    select = GivenAnswers(margins, np.ones(10, bool))
    unseen = GivenAnswers(margins, np.zeros(10, bool))
    assert unseen_weights(select, unseen) == pytest.approx(np.ones(10))  # nothing in common


@given(st.floats(0.0, 0.05), st.floats(0.001, 0.03), st.integers(100, 5000))
def test_a_smaller_loss_has_a_better_chance(loss: float, less: float, rows: int) -> None:
    assert LossEstimate(loss - less).chance(0.02, rows) >= LossEstimate(loss).chance(
        0.02, rows
    )


@pytest.mark.parametrize("loss", [0.0, 0.004, 0.008])
def test_the_chance_is_the_share_of_samples_that_are_certified(loss: float) -> None:
    rows, changed, limit = 872, 0.04, 0.02
    random = np.random.default_rng(0)
    shares = [(changed + loss) / 2, (changed - loss) / 2, 1 - changed]
    drawn = random.multinomial(rows, shares, size=2000)
    held = np.mean([accuracy_upper(rows, a, b) <= limit for a, b, _ in drawn])
    assert LossEstimate(loss, changed).chance(limit, rows) == pytest.approx(held, abs=0.06)


def test_few_rows_behind_an_estimate_make_its_chance_less_sure() -> None:
    exact, rough = LossEstimate(0.005, 0.03), LossEstimate(0.005, 0.03, rows=100)
    assert 0.5 < rough.chance(0.02, 2000) < exact.chance(0.02, 2000)


@pytest.mark.parametrize(
    ("text", "trained"),
    [
        ("", False),
        ("slice", False),
        ("slice,distill{epochs=1}", True),
        ("distill{epochs=1},slice", False),
        ('bag,cascade{to="pool-early"}', False),
        ('bag,cascade{to="slice,distill{epochs=1}"}', False),
        ('slice,distill{epochs=1},cascade{to="pool-early"}', False),
    ],
)
def test_training_as_the_last_step_of_a_single_model(text: str, trained: bool) -> None:
    assert ends_trained(Pipeline.parse(text) if text else Pipeline(())) is trained


def test_less_is_expected_after_training() -> None:
    assert LossEstimate(0.01).after_training() == LossEstimate(TRAINED * 0.01)
    assert LossEstimate(-0.01).after_training() == LossEstimate(-0.01)
