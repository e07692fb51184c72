"""Rows that were mixed together count for less than as many independent ones."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prumux.optimizer.certificate import design_effect as clusters
from prumux.optimizer.certificate.certificate import Certificate, certify
from prumux.optimizer.certificate.design_effect import (
    design_effect,
    linked_design_effect,
    resamples,
)
from prumux.optimizer.data.predict import mixed_together, predict
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.tasks.classification import Classification
from tests.helpers.factory import multiplexed, random_model

FIVE = Classification(tuple("abcde"))
PAIRS = np.repeat(np.arange(400), 2)


def wrong(rng: np.random.Generator, rows: int, share: float) -> list[NDArray[Any]]:
    """Predictions of a dense model that is right, of one that errs, and labels."""
    labels = rng.integers(5, size=rows)
    found = np.where(rng.random(rows) < share, (labels + 1) % 5, labels)
    return [labels, found, labels]


def bound(
    metric: str, made: list[NDArray[Any]], groups: NDArray[np.int64] | None = None
) -> Certificate:
    dense, found, labels = made
    return certify(metric, dense, found, labels, FIVE, 0.1, groups=groups)


@pytest.mark.parametrize("metric", ["accuracy", "agreement"])
def test_rows_told_twice_prove_no_more_than_once(metric: str) -> None:
    once = wrong(np.random.default_rng(0), 400, 0.03)
    twice = [np.repeat(x, 2) for x in once]
    alone = bound(metric, once)
    assert bound(metric, twice).loss_upper < alone.loss_upper
    together = bound(metric, twice, PAIRS)
    assert together.loss_upper == pytest.approx(alone.loss_upper, abs=0.003)
    assert together.rows == 800


def test_the_bootstrap_draws_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clusters, "RESAMPLES", 500)
    for weights in resamples(800, 0, PAIRS):
        assert (weights[:, ::2] == weights[:, 1::2]).all()
        assert (weights.sum(1) == 800).all()
    twice = [np.repeat(x, 2) for x in wrong(np.random.default_rng(0), 400, 0.05)]
    metric = next(x.name for x in FIVE.metrics if x.name.startswith("f1"))
    assert bound(metric, twice, PAIRS).loss_upper > bound(metric, twice).loss_upper


def test_partners_that_do_not_matter_cost_little() -> None:
    rng = np.random.default_rng(1)
    effects = [design_effect((rng.random(800) < 0.1).astype(float), PAIRS) for _ in range(50)]
    assert min(effects) == 1
    assert max(effects) < 1.25
    assert design_effect(np.zeros(800), PAIRS) == 1


def test_the_bound_covers_where_partners_hurt_each_other() -> None:
    """One group in 50 loses both rows, so the true loss is 2 points: 95 % must know it."""
    rng = np.random.default_rng(2)
    labels = np.zeros(800, np.int64)
    covered = {True: 0, False: 0}
    for _ in range(400):
        found = np.where(np.repeat(rng.random(400) < 0.02, 2), 1, labels)
        for known in covered:
            groups = PAIRS if known else None
            proof = bound("accuracy", [labels, found, labels], groups)
            covered[known] += proof.loss_upper >= 0.02
    assert covered[True] >= 0.95 * 400 - 9
    assert covered[False] < 0.93 * 400, "which is why groups are told"


def test_groups_are_those_that_are_mixed() -> None:
    """Other tokens in a row change answers in its own group only."""
    model = multiplexed(random_model())
    rng = np.random.default_rng(0)
    ids = tuple(tuple(map(int, rng.integers(5, 101, rng.integers(3, 20)))) for _ in range(37))
    rows = Encoded(Ragged.of(ids), None, None, pad_id=0)
    groups = mixed_together(rows, 2, seed=3)
    assert groups is not None
    assert np.bincount(groups).tolist() == [2] * 18 + [1]
    assert mixed_together(rows, 1, seed=3) is None
    seen: list[NDArray[Any]] = []

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        seen.append(inputs["input_ids"])
        return np.zeros((len(inputs["input_ids"]), model.encoder.labels))

    predict(run, rows, model.task, slots=2, seed=3)
    by_group: dict[int, set[tuple[int, ...]]] = {}
    for row, group in enumerate(groups):
        by_group.setdefault(int(group), set()).add(tuple(rows.ids[row].tolist()))
    pairs = [
        {tuple(int(x) for x in row if x != rows.pad_id) for row in batch[i : i + 2]}
        for batch in seen
        for i in range(0, len(batch), 2)
    ]
    assert sorted(map(sorted, pairs)) == sorted(map(sorted, by_group.values()))


def test_queries_whose_rows_are_mixed() -> None:
    rng = np.random.default_rng(0)
    losses = rng.normal(size=60)
    one_row_each = linked_design_effect(losses, np.arange(60), np.arange(60) // 2)
    assert one_row_each == pytest.approx(design_effect(losses, np.arange(60) // 2))
    # Ten rows a query, of which some are mixed with rows of one partner.
    of = np.repeat(np.arange(60), 10)
    alike = np.repeat(rng.normal(size=30), 2)
    partner = np.where(of % 2, of - 1, of)
    found = []
    for mixed in (0, 5, 10):
        place = np.arange(600) % 10
        groups = np.where(place < mixed, partner * 10 + place, of * 10 + place)
        found.append(
            linked_design_effect(alike, of, np.unique(groups, return_inverse=True)[1])
        )
    assert found == pytest.approx([1.0, 1.5, 2.0])
    assert linked_design_effect(np.zeros(60), of, of) == 1.0
