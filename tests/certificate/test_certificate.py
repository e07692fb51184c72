"""Bounds against hand-worked values and simulated coverage."""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom, multinomial

from prumux.optimizer.base.errors import DataError, UsageError
from prumux.optimizer.certificate.certificate import (
    Certificate,
    certify,
    fixed_sequence,
    interval,
)
from prumux.optimizer.certificate.confidence_bounds import (
    accuracy_upper,
    clopper_pearson_upper,
    tango_upper,
    unseen_errors,
)
from prumux.optimizer.certificate.provable import provable_loss, rows_needed
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens

BINARY = Classification(("no", "yes"))
FIVE = Classification(tuple("abcde"))
SCORE = Regression(("score",))
NER = Tokens(("O", "B-PER", "I-PER"))
Z = 1.6448536269514722


def sample(
    task: Task, rows: int, seed: int = 0, changed: float = 0.05
) -> tuple[Any, Any, Any]:
    """Predictions of a dense and an optimised model, and labels."""
    rng = np.random.default_rng(seed)
    y: Any
    if isinstance(task, Regression):
        y = rng.normal(size=rows)
        dense = y + 0.3 * rng.normal(size=rows)
        return dense, dense + changed * rng.normal(size=rows), y
    if isinstance(task, Tokens):
        rows_of = [rng.integers(3, size=12) for _ in range(rows)]
        near = [np.where(rng.random(12) < changed, 0, x) for x in rows_of]
        return tuple(rows_of), tuple(near), tuple(rows_of)
    classes = len(task.labels)
    y = rng.integers(classes, size=rows)
    dense = np.where(rng.random(rows) < 0.9, y, (y + 1) % classes)
    return dense, np.where(rng.random(rows) < changed, (dense + 1) % classes, dense), y


@pytest.mark.parametrize("rows", [8, 100, 872, 100_000])
def test_tango_does_not_degenerate_without_changed_rows(rows: int) -> None:
    assert tango_upper(rows, 0, 0) == pytest.approx(Z**2 / (rows + Z**2), rel=1e-9)


@pytest.mark.parametrize(
    ("rows", "worse", "better"), [(44, 10, 1), (200, 3, 9), (872, 40, 20)]
)
def test_tango_solves_the_score_equation(rows: int, worse: int, better: int) -> None:
    d = tango_upper(rows, worse, better)
    # The constrained likelihood, maximised over a fine grid instead of by the formula.
    q = np.linspace(max(0.0, -d) + 1e-9, (1 - d) / 2 - 1e-9, 400_001)
    likelihood = worse * np.log(q + d) + better * np.log(q)
    likelihood += (rows - worse - better) * np.log(1 - 2 * q - d)
    best = float(q[likelihood.argmax()])
    spread = math.sqrt(rows * (2 * best + d * (1 - d)))
    assert (worse - better - rows * d) / spread == pytest.approx(-Z, abs=1e-3)


def test_tango_at_the_ends() -> None:
    assert tango_upper(20, 20, 0) == pytest.approx(1.0)
    assert -1 < tango_upper(20, 0, 20) < -0.7


@pytest.mark.parametrize(
    ("rows", "p10", "p01"),
    [(200, 0.03, 0.01), (872, 0.03, 0.01), (872, 0.05, 0.05), (2000, 0.02, 0.0)],
)
def test_tango_covers(rows: int, p10: float, p01: float) -> None:
    bound = cache(tango_upper)
    drawn = np.random.default_rng(0).multinomial(rows, [p10, p01, 1 - p10 - p01], size=2000)
    covered = [bound(rows, int(w), int(b)) >= p10 - p01 for w, b, _ in drawn]
    assert np.mean(covered) >= 0.94


@pytest.mark.parametrize("rows", [8, 50, 200, 872])
def test_accuracy_bound_covers_one_sided_losses_exactly(rows: int) -> None:
    # Coverage is smallest at a true loss just above one of the bounds: all are enumerated.
    counts = np.arange(int(0.6 * rows))
    bounds = np.array([accuracy_upper(rows, int(w), 0) for w in counts])
    real = bounds <= 0.5
    coverage = binom.sf(counts, rows, bounds)
    assert real.any()
    assert coverage[real].min() >= 0.95
    # Without the half row it does not hold.
    plain = np.array([tango_upper(rows, int(w), 0) for w in counts])
    assert binom.sf(counts, rows, plain)[real].min() < 0.935


@pytest.mark.parametrize("gained", [0.0, 0.01, 0.05, 0.3])
def test_accuracy_bound_covers_two_sided_losses_exactly(gained: float) -> None:
    rows = 50
    counts = [(w, b) for w in range(rows + 1) for b in range(rows + 1 - w)]
    bounds = np.array([accuracy_upper(rows, w, b) for w, b in counts])
    table = np.array([(w, b, rows - w - b) for w, b in counts])
    for loss in (0.002, 0.01, 0.02, 0.035, 0.053, 0.07, 0.0925, 0.1):
        shares = [gained + loss, gained, 1 - 2 * gained - loss]
        assert multinomial.pmf(table, rows, shares)[bounds >= loss].sum() >= 0.95


def test_accuracy_bound_is_above_tango_and_at_most_1() -> None:
    assert accuracy_upper(872, 3, 1) == tango_upper(872, 3.5, 1)
    assert accuracy_upper(20, 20, 0) == pytest.approx(1.0)
    assert tango_upper(20, 0, 20) < accuracy_upper(20, 0, 20) < -0.6


def test_clopper_pearson_by_hand() -> None:
    assert clopper_pearson_upper(100, 0) == pytest.approx(1 - 0.05**0.01)
    assert clopper_pearson_upper(10, 10) == 1.0
    # P(at most 3 of 50) is 5 % at the bound.
    p = clopper_pearson_upper(50, 3)
    assert sum(
        math.comb(50, k) * p**k * (1 - p) ** (50 - k) for k in range(4)
    ) == pytest.approx(0.05)


def test_accuracy_certificate() -> None:
    dense, optimised, y = sample(BINARY, 1000)
    found = certify("accuracy", dense, optimised, y, BINARY, limit=0.2)
    assert found.method == "tango"
    right, kept = dense == y, optimised == y
    worse, better = int((right & ~kept).sum()), int((kept & ~right).sum())
    assert found.loss_upper == tango_upper(1000, worse + 0.5, better)
    assert found.rows == 1000
    assert found.loss == pytest.approx(found.score_dense - found.score)
    assert found.loss < found.loss_upper < 0.2
    assert found.holds
    assert not certify("accuracy", dense, optimised, y, BINARY, limit=0.0).holds
    assert json.loads(json.dumps(found.to_json()))["holds"] is True


def test_agreement_needs_no_labels() -> None:
    dense, optimised, _ = sample(BINARY, 1000)
    found = certify("agreement", dense, optimised, None, BINARY, limit=0.1)
    changed = int((dense != optimised).sum())
    assert found.method == "clopper-pearson"
    assert found.score_dense == 1.0
    assert found.loss == pytest.approx(changed / 1000)
    assert found.loss_upper == pytest.approx(clopper_pearson_upper(1000, changed))


CASES = [(m.name, t) for t in (BINARY, FIVE, SCORE, NER) for m in t.metrics]


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_few_rows_never_certify_a_tight_budget(metric: str, task: Task) -> None:
    dense, _, y = sample(task, 20)
    found = certify(metric, dense, dense, y, task, limit=0.05)
    assert found.loss == pytest.approx(0.0, abs=1e-12)
    # All rows agree, so that a bootstrap alone would say 0. (A lost span costs F1 one half.)
    assert found.loss_upper >= 0.45 * found.score_dense * Z**2 / (20 + Z**2)
    assert not found.holds


@pytest.mark.parametrize(("metric", "task"), CASES)
def test_bounds_are_repeatable_and_tighten_with_rows(metric: str, task: Task) -> None:
    few, many = sample(task, 100), sample(task, 2000)
    a, b = (certify(metric, *few, task, limit=0.1, seed=3) for _ in range(2))
    assert a == b
    c = certify(metric, *many, task, limit=0.1)
    assert c.loss <= c.loss_upper
    assert c.loss_upper - c.loss < a.loss_upper - a.loss


def test_a_rare_class_counts() -> None:
    y = np.zeros(2000, dtype=np.int64)
    assert certify("f1", y, y, y, BINARY, limit=0.5).loss_upper == pytest.approx(1.0)
    y[:10] = 1
    # 10 positives: some more of them that are lost cost as much as of 10 rows, not of 2,000.
    lost = certify("f1", y, y, y, BINARY, limit=0.5).loss_upper
    assert lost == pytest.approx(unseen_errors() / (20 + unseen_errors()), rel=0.01)
    assert unseen_errors() == pytest.approx(3.64, abs=0.01)


@pytest.mark.parametrize("metric", ["f1", "macro-f1", "matthews_correlation"])
def test_bootstrap_covers_a_rare_class(metric: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.optimizer.certificate.design_effect.RESAMPLES", 300)
    # Of 5 % positives the dense model finds 80 %, the optimised one loses a tenth of them.
    # With the worst case of unseen errors alone, 10 % of such samples had too low a bound.
    kinds = np.array([(1, 1, 1), (1, 1, 0), (1, 0, 0), (0, 1, 1), (0, 0, 0)])
    shares = np.array([0.05 * 0.72, 0.05 * 0.08, 0.01, 0.00475, 0.94525])
    y, dense, optimised = np.repeat(kinds, np.round(shares * 400_000).astype(int), axis=0).T
    true = BINARY.score(metric, dense, y) - BINARY.score(metric, optimised, y)
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(300):
        y, dense, optimised = kinds[random.choice(5, 872, p=shares)].T
        missed += certify(metric, dense, optimised, y, BINARY, 0.1).loss_upper < true
    assert missed <= 0.05 * 300


@pytest.mark.parametrize(("metric", "task"), [("f1", BINARY), ("pearson", SCORE)])
def test_bootstrap_covers(metric: str, task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.optimizer.certificate.design_effect.RESAMPLES", 300)
    dense, optimised, y = sample(task, 400_000, changed=0.1)
    true = task.score(metric, dense, y) - task.score(metric, optimised, y)
    uppers = [
        certify(metric, *sample(task, 300, seed, changed=0.1), task, limit=0.1).loss_upper
        for seed in range(200)
    ]
    # Three standard errors of 200 runs below 0.95.
    assert np.mean(np.array(uppers) >= true) >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / 200)


def test_fixed_sequence_ships_a_bad_model_in_at_most_5_percent() -> None:
    rng = np.random.default_rng(0)
    bound = cache(accuracy_upper)
    limit, rows, runs = 0.02, 872, 2000
    # From the safest to the fastest; the last three are over the limit, by a little at first.
    losses = [0.0, 0.005, 0.01, 0.0201, 0.021, 0.03]
    bad = 0
    for _ in range(runs):
        drawn = [rng.multinomial(rows, [0.02 + d, 0.02, 0.96 - d]) for d in losses]
        tests = (
            Certificate(
                "accuracy",
                rows,
                0.9,
                0.9,
                0,
                bound(rows, int(w), int(b)),
                0.95,
                limit,
                "tango",
            )
            for w, b, _ in drawn
        )
        last = fixed_sequence(tests)
        bad += last >= 0 and losses[last] > limit
    assert bad / runs <= 0.05


def test_fixed_sequence_stops_at_the_first_failure() -> None:
    made: list[float] = []

    def candidates(*uppers: float) -> Iterator[Certificate]:
        for upper in uppers:
            made.append(upper)
            yield Certificate("accuracy", 100, 0.9, 0.9, 0.0, upper, 0.95, 0.02, "tango")

    assert fixed_sequence(candidates(0.01, 0.02, 0.03, 0.01)) == 1
    assert made == [0.01, 0.02, 0.03]
    assert fixed_sequence(candidates(0.03, 0.01)) == -1
    assert fixed_sequence(candidates(0.01)) == 0
    assert fixed_sequence([]) == -1


def test_interval() -> None:
    y = np.zeros(100, dtype=np.int64)
    p = (np.arange(100) < 10).astype(np.int64)
    # Wilson for 90 of 100.
    assert interval("accuracy", p, y, BINARY) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    dense, _, labels = sample(SCORE, 300)
    low, high = interval("pearson", dense, labels, SCORE)
    assert low < SCORE.score("pearson", dense, labels) < high
    assert interval("pearson", dense, labels, SCORE) == (low, high)


def test_planning() -> None:
    loss = provable_loss(5000, 0.02)
    worse, better = 5000 * (0.05 + loss) / 2, 5000 * (0.05 - loss) / 2
    assert accuracy_upper(5000, worse, better) == pytest.approx(0.02, abs=1e-6)
    assert accuracy_upper(5000, worse, better) <= 0.02
    assert provable_loss(100, 0.005) < 0 < provable_loss(100_000, 0.005)
    assert provable_loss(0, 0.02) == -1.0
    needed = rows_needed(0.02)
    assert provable_loss(needed, 0.02) >= 0 > provable_loss(needed - 1, 0.02)
    assert rows_needed(0.02, loss=0.01) > needed


def test_errors() -> None:
    p = np.zeros(5, dtype=np.int64)
    with pytest.raises(DataError, match="5 dense and 4 optimised predictions for 5 labels"):
        certify("accuracy", p, p[:4], p, BINARY, 0.02)
    with pytest.raises(DataError, match="0 rows to certify on: give labelled rows"):
        certify("accuracy", p[:0], p[:0], p[:0], BINARY, 0.02)
    with pytest.raises(DataError, match=r"'accuracy' needs labels.*use --metric agreement"):
        certify("accuracy", p, p, None, BINARY, 0.02)
    with pytest.raises(
        UsageError, match=r"loss of 2.00% within 1.00%: use a budget above 2.00%"
    ):
        rows_needed(0.01, loss=0.02)
    with pytest.raises(UsageError, match="'pearson' does not fit"):
        certify("pearson", p, p, p, BINARY, 0.02)


def test_the_rows_that_would_do() -> None:
    few = certify_counts(872, 30, 22)
    assert not few.holds
    assert few.rows_that_would_do is not None
    share = few.rows_that_would_do / 872
    assert certify_counts(*(round(share * x) for x in (872, 30, 22))).loss_upper == (
        pytest.approx(0.02, abs=0.0005)
    )
    assert certify_counts(872, 40, 10).rows_that_would_do is None
    holds = certify_counts(872, 10, 10)
    assert holds.holds
    assert holds.rows_that_would_do is not None
    assert holds.rows_that_would_do <= 872


def certify_counts(rows: int, worse: int, better: int) -> Certificate:
    """A certificate of accuracy within 2 points for these counts."""
    y = np.zeros(rows, dtype=np.int64)
    dense, found = y.copy(), y.copy()
    found[:worse] = 1
    dense[worse : worse + better] = 1
    return certify("accuracy", dense, found, y, BINARY, limit=0.02)
