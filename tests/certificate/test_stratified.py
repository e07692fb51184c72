"""The bound of balanced accuracy keeps its level where a class is rare."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from prumux.optimizer.certificate.certificate import certify
from prumux.optimizer.certificate.confidence_bounds import accuracy_upper
from prumux.optimizer.certificate.stratified import stratified_upper
from prumux.optimizer.tasks.classification import Classification

BINARY = Classification(("negative", "positive"))


def test_one_class_is_accuracy() -> None:
    lost, won = np.arange(50) < 4, np.arange(50) > 47
    found = stratified_upper(np.zeros(50), lost, won, accuracy_upper)
    assert found == pytest.approx(accuracy_upper(50, 4, 2))


@pytest.mark.parametrize(("few", "many"), [(8, 40), (8, 428), (30, 60)])
def test_it_covers_losses_of_two_classes_exactly(few: int, many: int) -> None:
    """All outcomes where no row gets better, over a grid of true losses of both recalls."""
    bound = cache(accuracy_upper)
    a, b = np.arange(few + 1), np.arange(min(many, int(0.5 * many) + 20) + 1)
    loss_a, loss_b = a / few, b / many
    more_a = np.array([bound(few, int(x), 0) for x in a]) - loss_a
    more_b = np.array([bound(many, int(x), 0) for x in b]) - loss_b
    upper = (loss_a[:, None] + loss_b + np.hypot(more_a[:, None], more_b)) / 2
    labels = np.repeat([0, 1], [few, many])
    lost = np.zeros(few + many, dtype=bool)
    lost[[0, few, few + 1]] = True  # one of the few, two of the many
    assert stratified_upper(labels, lost, ~lost & lost, accuracy_upper) == pytest.approx(
        upper[1, 2]
    )
    for p in (0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.31, 0.4, 0.6):
        for q in (0, 0.001, 0.005, 0.02, 0.05, 0.1, 0.2, 0.3):
            chances = binom.pmf(a, few, p)[:, None] * binom.pmf(b, many, q)
            missed = chances[upper < (p + q) / 2].sum()
            assert missed <= 0.05, (p, q)


@pytest.mark.parametrize("loss_of_rare", [0.05, 0.1, 0.2])
def test_a_bad_model_is_certified_in_at_most_5_percent_of_draws(loss_of_rare: float) -> None:
    """Eight positives among 436 rows; whatever limit is just below the true loss."""
    rng = np.random.default_rng(0)
    labels = np.repeat([1, 0], [8, 428])
    true = (loss_of_rare + 0.01 - 0.005) / 2
    over = 0
    for _ in range(400):
        lost = rng.random(436) < np.where(labels == 1, loss_of_rare, 0.01)
        won = ~lost & (rng.random(436) < np.where(labels == 1, 0, 0.005 / 0.99))
        dense = np.where(won, 1 - labels, labels)
        optimised = np.where(lost, 1 - labels, labels)
        found = certify("balanced-accuracy", dense, optimised, labels, BINARY, true - 1e-9)
        over += found.holds
    assert over <= 0.05 * 400


def test_twenty_classes_of_which_some_are_rare() -> None:
    rng = np.random.default_rng(0)
    sizes = [200, 100, 80, 60, 50, 40, 30, 30, 20, 20, 15, 15, 12, 10, 10, 8, 8, 5, 3, 2]
    labels = np.repeat(np.arange(20), sizes)
    bound: Any = cache(partial(accuracy_upper))
    over = 0
    for _ in range(200):
        lost = rng.random(len(labels)) < 0.05
        over += stratified_upper(labels, lost, ~lost & lost, bound) < 0.05
    assert over <= 0.05 * 200


def test_eight_positives_prove_no_budget_of_two_points() -> None:
    labels = np.repeat([1, 0], [8, 428])
    found = certify("balanced-accuracy", labels, labels, labels, BINARY, 0.02)
    assert found.method == "stratified tango"
    assert found.loss == 0
    # 1 - 0.05 ** (1 / 8): a model may lose 31 % of the positives and show none of it.
    assert found.loss_upper >= (1 - 0.05 ** (1 / 8)) / 2
    assert not found.holds


def test_rows_that_were_mixed_count_less() -> None:
    labels = np.arange(400) % 2
    lost = np.arange(400) < 40
    alone = stratified_upper(labels, lost, ~lost & lost, accuracy_upper)
    mixed = stratified_upper(labels, lost, ~lost & lost, accuracy_upper, np.arange(400) // 4)
    assert mixed > alone
