"""The sequence of certificates with the largest expected speed-up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.search.certification_order import (
    SURE,
    SURPRISE,
    _best_sequence,
    certification_order,
)
from prumux.optimizer.search.unseen_loss import GivenAnswers, LossEstimate, unseen_weights

LIMIT, ROWS = 0.02, 2000


@dataclass(frozen=True)
class Candidate:
    """A candidate by its multiply-adds and expected loss."""

    macs: float
    loss: float

    @property
    def estimate(self) -> LossEstimate:
        return LossEstimate(self.loss)

    @property
    def chance(self) -> float:
        return self.estimate.chance(LIMIT, ROWS)


def expected_gain(sequence: Sequence[tuple[Candidate, float]], start: float) -> float:
    """V of the module, by its definition."""
    found, cost = 0.0, start
    for k, (one, chance) in enumerate(sequence):
        found += chance * (1 - SURPRISE) ** k * math.log(cost / one.macs)
        cost = one.macs
    return found


@given(st.lists(st.floats(0.01, 0.99), max_size=7), st.integers(0, 99))
def test_no_other_part_of_the_front_has_a_larger_expected_gain(
    chances: list[float], seed: int
) -> None:
    random = np.random.default_rng(seed)
    costs = np.sort(random.uniform(1, 100, len(chances)))[::-1]
    falling = sorted(chances, reverse=True)
    front = [(Candidate(float(c), 0.0), p) for c, p in zip(costs, falling, strict=True)]
    found = _best_sequence(front, 120.0)
    mine = expected_gain([x for x in front if x[0] in found], 120.0)
    for n in range(len(front) + 1):
        for part in combinations(front, n):
            assert mine >= expected_gain(part, 120.0) - 1e-9


def test_neither_slower_nor_riskier_candidates_are_certified() -> None:
    fast, risky, slow = Candidate(10, 0.005), Candidate(20, 0.01), Candidate(40, 0.004)
    order = certification_order([slow, risky, fast], LIMIT, ROWS, 100.0)
    assert risky not in order
    assert order[-1] == fast
    assert certification_order([slow], LIMIT, ROWS, 40.0) == []
    assert certification_order([Candidate(10, 0.03)], LIMIT, ROWS, 100.0) == []


def test_without_anything_certified_the_first_is_almost_sure() -> None:
    sure, surer, rough = Candidate(50, 0.002), Candidate(60, -0.01), Candidate(1, 0.015)
    assert sure.chance >= SURE > rough.chance
    assert certification_order([rough, surer, sure], LIMIT, ROWS, None) == [sure, rough]
    hopeless = Candidate(50, 0.2)
    assert certification_order([hopeless], LIMIT, ROWS, None) == [hopeless]
    assert certification_order([], LIMIT, ROWS, None) == []


@pytest.mark.parametrize("limit", [0.01, 0.02])
def test_few_bad_candidates_pass_although_the_given_model_s_answers_decide(
    limit: float,
) -> None:
    """The given model's answers to certify rows decide the order, so the level is simulated.

    All candidates are bad, some just above the limit. Their expected losses vary by sample.
    """
    rows, users, random = 872, 600, np.random.default_rng(0)
    errors, changed = 0.1, 0.05
    losses = np.array([1.01, 1.05, 1.2]) * limit
    select = GivenAnswers(random.exponential(2, 2000), random.random(2000) < 0.97)
    wrong = 0
    for _ in range(users):
        right = random.random(rows) >= errors
        unseen = GivenAnswers(random.exponential(2, rows), right)
        weights = unseen_weights(select, unseen)
        trials, bounds = [], {}
        for i, loss in enumerate(losses):
            # A candidate loses rows that the given model has right, and wins wrong ones.
            lost, won = (changed + loss) / 2 / (1 - errors), (changed - loss) / 2 / errors
            here = np.where(select.right, lost, -won)
            guess = float(np.average(here, weights=weights)) + random.normal(0, 0.004)
            one = Candidate(100.0 - i, guess)
            trials.append(one)
            worse = (right & (random.random(rows) < lost)).sum()
            better = (~right & (random.random(rows) < won)).sum()
            bounds[one] = accuracy_upper(rows, worse, better)
        order = certification_order(trials, limit, rows, None)
        wrong += bounds[order[0]] <= limit
    assert wrong / users <= 0.05 + 2.5 * (0.05 * 0.95 / users) ** 0.5
