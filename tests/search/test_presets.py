"""The default schedules, and how they are searched."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from prumux.optimizer.base.errors import PassError, UsageError
from prumux.optimizer.base.store import Store
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.accuracy_model import Shape, fit
from prumux.optimizer.search.acquisition import TimedCandidate
from prumux.optimizer.search.bisection import SearchResult, Trial
from prumux.optimizer.search.presets import (
    LADDERS,
    ProgressiveSchedule,
    ScheduleStep,
    default_space,
    minutes_left,
    progressive_schedule,
)
from prumux.optimizer.search.progressive import SearchActions
from prumux.optimizer.search.progressive_certificates import (
    fallback_confidence,
    search_progressively,
)
from prumux.optimizer.search.progressive_run import minute_granter
from tests.helpers.factory import random_model

LIMIT = 0.02
ROWS = 9000
FITTED = partial(fit, rows=2000)
MODEL = random_model("bert")
GIVEN = progressive_schedule("standard", LIMIT, 3600.0, MODEL)
RUNGS = [x for x, _ in LADDERS["standard"][1:]]
BRIEF = GIVEN.cuts[0].minutes
GOOD, BAD, LOSES = (0.001, 0.005), (0.001, 0.025), (0.021, 0.005)


@dataclass
class World:
    """What candidates lose, and what is proved of them."""

    brief: Mapping[float, float]
    """Loss by speed-up after brief training; the next one's for those that are not named."""
    long: float = 0.6
    """Share of it that long training leaves."""
    mixed: Callable[[float], float] = lambda _: 1.0
    """Loss of mixing on such a loss."""
    mixing: Mapping[int, float] = field(default_factory=dict)
    """How much faster n rows in one are; not at all if not named."""
    safe: tuple[float, float] | None = (1.0, 1.0)
    """What the last safe candidate loses, and its bound; None = it cannot be made."""
    refused: Callable[[Pipeline], bool] = lambda _: False
    most: float = math.inf
    """Larger speed-ups are out of reach."""
    rows: int = ROWS
    trials: float = math.inf
    """No time is left after so many."""
    given: ProgressiveSchedule = GIVEN
    safe_speedup: float = 1.1
    """Of what is safe, as measured."""
    surer: tuple[float, float] | None = None
    """As `safe`, of a safe candidate that is not the last of them."""
    refitted: Mapping[float, float] = field(default_factory=dict)
    """Loss by speed-up of cuts without training; all if not named."""
    deeper: tuple[float, float] | None = None
    """Up to which sparsity deeper fallbacks lose nothing, and their bound."""

    def __post_init__(self) -> None:
        self.tried: list[str] = []
        """Those that were trained."""
        self.asked: list[str] = []
        """Cuts without training, and deeper fallbacks."""

    def searched(self) -> SearchResult:
        hands = SearchActions(self.trial, self.prove, self.look, self.granted)
        return search_progressively(self.given, hands, LIMIT, self.rows, FITTED)

    def known(self, pipeline: Pipeline) -> tuple[float, float] | None:
        return self.safe if pipeline == self.given.fallbacks[-1] else self.surer

    def trial(self, pipeline: Pipeline) -> Trial:
        if pipeline in self.given.fallbacks:
            if (known := self.known(pipeline)) is None:
                raise PassError("no", exit_code=2)
            return Trial(pipeline, 0.9, known[0], 1.0, 1100)
        if pipeline in self.given.deeper_fallbacks:
            self.asked.append(str(pipeline))
            loss = 0.0 if self.deeper and sparsity(pipeline) <= self.deeper[0] else 1.0
            return Trial(pipeline, 1 - loss, loss, 1.0, 1050)
        speedup = cuts(pipeline)[-1]
        if speedup > self.most:
            raise PassError("embeddings and head alone take longer", exit_code=2)
        if pipeline.passes[-1].training is None:
            self.asked.append(str(pipeline))
            loss = self.refitted.get(speedup, 1.0)
            return Trial(pipeline, 1 - loss, loss, 1.0, macs(pipeline))
        self.tried.append(str(pipeline))
        loss = next((x for k, x in self.brief.items() if k >= speedup), 1.0)
        if "mux" in str(pipeline):
            loss = self.mixed(loss)
        if trained(pipeline)[-1] > BRIEF:
            loss *= self.long
        return Trial(pipeline, 1 - loss, loss, 1.0, macs(pipeline))

    def prove(self, pipeline: Pipeline, confidence: float) -> Certificate:
        upper = 0.03 if self.refused(pipeline) else 0.01
        if pipeline in self.given.fallbacks:
            known = self.known(pipeline)
            assert known
            upper = known[1]
        if pipeline in self.given.deeper_fallbacks:
            assert self.deeper
            upper = self.deeper[1]
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, upper, confidence, LIMIT, "tango")

    def look(self, space: Sequence[Pipeline]) -> list[TimedCandidate]:
        """A speed-up is what was asked for, and what mixing is said to give."""
        found = []
        for pipeline in space:
            known = (*self.given.fallbacks, *self.given.deeper_fallbacks)
            speedup = self.safe_speedup if pipeline in known else cuts(pipeline)[-1]
            mux = [x for x in pipeline.passes if x.slots > 1]
            n = mux[0].slots if mux else 1
            faster = speedup * (self.mixing.get(n, 0.0) if mux else 1.0)
            found.append(TimedCandidate(pipeline, Shape(1 / speedup, n, 0.5), faster))
        return found

    def granted(self, step: ScheduleStep, number: int) -> float:
        assert number == len(self.tried)
        if self.tried and len(self.tried) >= self.trials:
            return 0.0
        return min(step.minutes, 99.0)


def macs(pipeline: Pipeline) -> int:
    """Multiply-adds for one row, of 1000 of the given model."""
    slots = max([1, *(x.slots for x in pipeline.passes)])
    return round(1000 / cuts(pipeline)[-1] / slots)


def cuts(pipeline: object) -> list[float]:
    return [float(x) for x in re.findall(r"speedup=([\d.]+)", str(pipeline))]


def trained_candidates(given: ProgressiveSchedule) -> tuple[Pipeline, ...]:
    return given.candidates()[len(given.fallbacks) + len(given.deeper_fallbacks) :]


def sparsity(pipeline: object) -> float:
    return float(re.findall(r"sparsity=([\d.]+)", str(pipeline))[-1])


def trained(pipeline: object) -> list[float]:
    return [float(x) for x in re.findall(r"minutes=([\d.]+)", str(pipeline))]


def test_members_go_on_from_each_other() -> None:
    given = progressive_schedule("standard", 0.02, 600.0, MODEL)
    members = [str(x) for x in trained_candidates(given)]
    assert len(members) == len(RUNGS)
    for before, after in pairwise(members):
        assert after.startswith(before + ",prune{speedup=")
    assert set(trained(members[-1])) == {0.3}, "a share of ten minutes"
    counted = map(
        str, progressive_schedule("standard", 0.02, 600.0, MODEL, measured=False).candidates()
    )
    assert all("of=macs" in x and "speedup" not in x for x in counted)


def test_a_tight_budget_begins_with_less() -> None:
    tight, wide = (
        progressive_schedule("standard", points, 600.0, MODEL) for points in (0.01, 0.02)
    )
    assert cuts(trained_candidates(tight)[0]) == [1.5]
    assert cuts(trained_candidates(wide)[0]) == [2]
    assert sparsity(tight.deeper_fallbacks[0]) == 0.3
    assert sparsity(wide.deeper_fallbacks[0]) == 0.55
    assert sparsity(wide.deeper_fallbacks[-1]) == 0.9
    assert len(tight.fallbacks) == len(wide.fallbacks) == 1
    assert "sparsity=0.25 " in str(tight.fallbacks[0])
    assert "sparsity=0.5 " in str(wide.fallbacks[0])
    lowered = [
        progressive_schedule("standard", x, 600.0, MODEL, lowered=True) for x in (0.01, 0.02)
    ]
    alone = Pipeline.parse("pool-early")
    assert lowered[0].fallbacks == (alone, *tight.fallbacks), (
        "the lower precision alone comes first"
    )
    assert lowered[1].fallbacks == wide.fallbacks


@pytest.mark.parametrize("effort", ["quick", "standard", "thorough"])
def test_every_effort_has_candidates_that_are_cut(effort: str) -> None:
    for pipeline in default_space(effort, 0.02, None, MODEL):  # type: ignore[arg-type]
        assert not pipeline.uncut


def test_the_last_cut_that_loses_little_more_is_trained_for_all_that_is_left() -> None:
    world = World({2: 0.012, 3: 0.018, 4.2: 0.036, 5.5: 0.03, 7.5: 0.051})
    found = world.searched()
    ways = [cuts(x) for x in world.tried]
    deepest = [2, 3, 4.2, 5.5]
    assert ways == [[2], [2, 3], [2, 3, 4.2], deepest, [*deepest, 7.5], deepest]
    assert world.tried[-1] == f"{world.tried[3]},distill{{minutes=99.0}}"
    assert str(found.winner) == world.tried[-1]
    assert [cuts(x) for x, _ in found.proofs] == [[2], deepest], "the surest, then the last"


def test_a_cut_that_training_makes_worse_is_left_as_it_was_refitted() -> None:
    world = World({2: 0.0127, 3: 0.018, 4.2: 0.04}, refitted={2: 0.006, 3: 0.02})
    found = world.searched()
    assert trained(world.tried[1]) == [BRIEF], "the second cut goes on from the refitted one"
    assert cuts(found.winner) == [2, 3]
    assert str(found.winner) == world.tried[-1] == f"{world.tried[1]},distill{{minutes=99.0}}"


def test_a_cut_that_loses_little_is_not_trained() -> None:
    world = World({4.2: 0.018, 5.5: 0.04}, refitted={2: 0.001})
    world.searched()
    assert cuts(world.tried[0]) == [2, 4.2], "and the next rung is skipped"
    assert len(trained(world.tried[0])) == 1


def test_long_training_that_loses_more_is_not_taken() -> None:
    world = World({2: 0.012, 3: 0.018, 4.2: 0.04}, long=1.5)
    found = world.searched()
    assert trained(world.tried[-1])[-1] == 99
    assert str(found.winner) == world.tried[1]


def test_the_candidates_of_quick_are_certified_too() -> None:
    world = World({2: 0.2}, safe=GOOD, deeper=(0.7, 0.015), safe_speedup=3.0)
    found = world.searched()
    tried = [sparsity(x) for x in world.asked if "sparsity" in x]
    assert tried == [0.7, 0.8, 0.75]
    assert [x.confidence for _, x in found.proofs][:2] == [0.99, 0.99]
    assert sparsity(found.winner) == 0.7, "as fast as the safest: the later one"
    world = World({2: 0.2}, safe=GOOD, deeper=(0.7, 0.025), safe_speedup=3.0)
    assert sparsity(world.searched().winner) == 0.5, "not certified"
    world = World({2: 0.2}, safe=LOSES, deeper=(0.7, 0.015))
    world.searched()
    assert not [x for x in world.asked if "sparsity" in x], "the safest one loses too much"


def test_the_first_cut_stays_whatever_it_loses() -> None:
    world = World({2: 0.2}, safe=(0.01, 0.03))
    found = world.searched()
    assert [cuts(x) for x in world.tried] == [[2], [2]]
    assert found.winner is None, "the safe candidate failed, and the cut is hopeless"
    assert len(found.proofs) == 1


def test_easy_cuts_are_passed_over_but_not_the_last() -> None:
    world = World({28: 0.004})
    world.searched()
    assert cuts(world.tried[-1]) == [2, 4.2, 7.5, 14, 28]
    world = World({20: 0.004, 28: 0.02}, most=20)
    world.searched()
    assert cuts(world.tried[-1]) == [2, 4.2, 7.5, 14, 20], "passed over, then in reach"


def test_a_cut_that_rows_can_prove_easily_is_proved_before_the_last() -> None:
    losses = {2: 0.007, 3: 0.024, 4.2: 0.04}
    world = World(losses, refused=lambda x: 3 in cuts(x))
    found = world.searched()
    assert [cuts(x) for x, _ in found.proofs] == [[2], [2, 3]]
    assert cuts(found.winner) == [2]
    found = World(losses, long=0.4).searched()
    assert [cuts(x) for x, _ in found.proofs] == [[2, 3]], "the last one can be, too"


def test_half_an_hour_never_ends_with_nothing() -> None:
    found = World({28: 0.015}, safe=(0.001, 0.015), refused=lambda _: True).searched()
    assert "distill" not in str(found.winner)
    assert found.certificate == found.proofs[0][1]
    assert "a safe candidate, without training" in found.reason
    assert "at most 3.00%" in found.reason


@pytest.mark.parametrize(
    ("safe", "proofs"),
    [
        ((0.001, 0.015), [0.99, 0.95, 0.95]),  # its share of the errors passes on
        ((0.001, 0.025), [0.99, 0.96, 0.96]),  # its share is spent
        ((0.021, 0.015), [0.95, 0.95]),  # lost too much on the select rows: never asked
        (None, [0.95, 0.95]),
    ],
)
def test_all_proofs_together_err_in_one_run_of_twenty(
    safe: tuple[float, float] | None, proofs: list[float]
) -> None:
    found = World({2: 0.007, 3: 0.024, 4.2: 0.04}, safe=safe).searched()
    assert [x.confidence for _, x in found.proofs] == pytest.approx(proofs)
    assert cuts(found.winner) == [2, 3]


def test_of_all_that_hold_the_fastest_is_shipped() -> None:
    """A first cut that was asked for by its time came out slower than the safe one."""
    world = World({2: 0.021, 3: 0.05}, safe=GOOD, safe_speedup=2.5)
    found = world.searched()
    assert [x.holds for _, x in found.proofs] == [True, True]
    assert (found.winner, found.certificate) == found.proofs[0]
    assert found.reason.startswith("the fastest candidate that was certified")
    found = World({2: 0.021, 3: 0.05}, safe=GOOD, safe_speedup=2.0).searched()
    assert cuts(found.winner) == [2], "as fast: the later one, which was trained"


@pytest.mark.parametrize(("rows", "limit"), [(872, 0.01), (200, 0.02)])
def test_where_rows_are_few_the_safe_candidate_has_all_the_errors(
    rows: int, limit: float
) -> None:
    assert fallback_confidence(rows, limit) == 0.95
    assert fallback_confidence(5 * rows, limit) == 0.99
    found = World({28: 0.015}, safe=(0.001, 0.015), rows=rows // 5).searched()
    assert [x.confidence for _, x in found.proofs] == [0.95, 0.95]
    assert "distill" in str(found.winner)
    found = World({28: 0.015}, safe=(0.001, 0.025), rows=rows // 5).searched()
    assert [x.confidence for _, x in found.proofs] == [0.95], "none is left for the others"
    assert found.winner is None
    assert "proved by 900 rows to be at most 2.50%" in found.reason


FEW, MANY = ROWS // 50, ROWS


@pytest.mark.parametrize(
    ("rows", "surer", "safe", "last", "confidences", "shipped"),
    [
        (MANY, GOOD, GOOD, True, [0.99, 0.99, 0.95], "distill"),
        (MANY, GOOD, BAD, True, [0.99, 0.99, 0.96], "distill"),
        (MANY, GOOD, BAD, False, [0.99, 0.99, 0.96], "pool-early"),
        (MANY, GOOD, GOOD, False, [0.99, 0.99, 0.95], "reconstruct"),
        (MANY, BAD, GOOD, True, [0.99, 0.96], "distill"),
        (MANY, BAD, GOOD, False, [0.99, 0.96], ""),
        (FEW, GOOD, GOOD, True, [0.95, 0.95, 0.95], "distill"),
        (FEW, GOOD, GOOD, False, [0.95, 0.95, 0.95], "reconstruct"),
        (FEW, GOOD, BAD, True, [0.95, 0.95], "pool-early"),  # no errors are left
        (FEW, BAD, GOOD, True, [0.95], ""),
        (FEW, GOOD, LOSES, True, [0.95, 0.95], "distill"),  # on the select rows: not asked
        (FEW, LOSES, GOOD, True, [0.95, 0.95], "distill"),
        (FEW, None, GOOD, True, [0.95, 0.95], "distill"),  # cannot be made
    ],
)
def test_what_is_safe_is_certified_one_after_the_other(  # noqa: PLR0917 - a table
    rows: int,
    surer: tuple[float, float] | None,
    safe: tuple[float, float],
    last: bool,
    confidences: list[float],
    shipped: str,
) -> None:
    given = progressive_schedule("standard", 0.01, 3600.0, MODEL, lowered=True)
    world = World(
        {28: 0.015},
        given=given,
        surer=surer,
        safe=safe,
        rows=rows,
        refused=lambda _: not last,
    )
    found = world.searched()
    assert [x.confidence for _, x in found.proofs] == pytest.approx(confidences)
    if not shipped:
        assert found.winner is None
        return
    assert str(found.winner.passes[-1]).startswith(shipped)  # type: ignore[union-attr]
    assert found.certificate in [x for p, x in found.proofs if p == found.winner]


def test_nothing_within_the_limit_asks_no_certify_row() -> None:
    found = World({28: 0.5}).searched()
    assert found.winner is None
    assert not found.proofs, "another precision may do"
    assert "lost 30.00% on the select rows, above the limit 2.00%" in found.reason


def test_mixing_goes_on_while_it_loses_no_more() -> None:
    def mixed(loss: float) -> float:
        return loss + 0.001

    world = World({2: 0.012, 3: 0.018, 4.2: 0.041}, mixed=mixed, mixing={2: 1.5, 5: 3, 10: 2})
    found = world.searched()
    mixes = [re.findall(r"mux{n=(\d+)", x) for x in world.tried]
    assert mixes == [[], [], [], ["2"], ["5"], ["5"]], "as fast is not faster"
    assert str(found.winner) == world.tried[-1] == f"{world.tried[-2]},distill{{minutes=99.0}}"
    assert cuts(found.winner) == [2, 3]
    assert len(found.trials) == len(world.tried) + len(world.asked) + 1, "and the safe one"


@pytest.mark.parametrize(("lost", "goes_on"), [(0.026, False), (0.024, True)])
def test_mixing_that_loses_too_much_is_dropped(lost: float, goes_on: bool) -> None:
    losses = {2: 0.012, 3: 0.018, 4.2: 0.04}
    found = World(losses, mixed=lambda _: lost, mixing={2: 1.5}).searched()
    assert ("mux" in str(found.winner)) is goes_on
    assert any("mux" in str(x.pipeline) for x in found.trials)


def test_a_cut_that_is_out_of_reach_ends_the_schedule() -> None:
    found = World({28: 0.011}, most=6.5).searched()
    assert cuts(found.winner) == [2, 3, 4.2, 5.5]
    assert trained(found.winner)[-1] == 99


def test_where_no_cut_is_in_reach_the_safe_candidate_is_shipped() -> None:
    found = World({}, most=1.0, safe=(0.01, 0.015)).searched()
    assert found.winner == GIVEN.fallbacks[0]
    assert [x.confidence for _, x in found.proofs] == [0.99]
    with pytest.raises(PassError, match="embeddings and head alone"):
        World({}, most=1.0, safe=None).searched()


def test_a_long_training_that_fails_leaves_what_was_there() -> None:
    world = World({2: 0.012, 3: 0.018, 4.2: 0.04})
    real = world.trial

    def trial(pipeline: Pipeline) -> Trial:
        if trained(pipeline)[-1:] == [99.0]:
            raise PassError("training diverged", exit_code=2)
        return real(pipeline)

    world.trial = trial  # type: ignore[method-assign]
    assert cuts(world.searched().winner) == [2, 3]


def test_the_end_of_the_time_is_said() -> None:
    world = World({28: 0.015}, trials=3)
    found = world.searched()
    assert len(world.tried) == 3
    assert str(found.winner) == world.tried[-1]
    assert "stopped by the time limit after 8 trials" in found.reason


def test_no_time_at_all_still_tries_one() -> None:
    world = World({28: 0.015}, trials=0)
    assert cuts(world.searched().winner) == [2]
    assert len(world.tried) == 1


def test_a_training_gets_the_time_that_is_left_or_is_not_begun() -> None:
    step = ScheduleStep(
        Pipeline.parse("prune{speedup=2},slice,distill").passes, 10.0, least_minutes=3.0
    )
    assert minutes_left(step, left=0.0, number=0) == 10.0, "something is always tried"
    assert minutes_left(step, left=15.0, number=1) == 10.0
    assert minutes_left(step, left=8.5, number=1) == 7.5
    assert minutes_left(step, left=3.0, number=1) == 0.0
    assert minutes_left(replace(step, reserve_minutes=8.0), left=15.0, number=1) == 6.0
    assert minutes_left(replace(step, minutes=math.inf), left=15.0, number=1) == 14.0
    passes = Pipeline.parse("learn-masks{speedup=2},slice,distill").passes
    assert (
        minutes_left(ScheduleStep(passes, 4.0, least_minutes=1.0), left=8.0, number=1) == 3.0
    )


def test_a_resumed_run_trains_as_long_as_it_was_going_to(tmp_path: Path) -> None:
    left_s = 3600.0
    granted = minute_granter(Store(tmp_path), lambda: left_s)
    given = progressive_schedule("standard", LIMIT, 3600.0, MODEL)
    before = granted(given.cuts[0], 1)
    assert before == given.cuts[0].minutes
    left_s = 120.0
    assert minute_granter(Store(tmp_path), lambda: left_s)(given.cuts[0], 1) == before
    assert granted(given.final, 1) == 0.0, "another step, though the trial has the same number"
    assert granted(given.cuts[0], 2) == 0.0


def test_a_resumed_run_has_no_more_time_than_it_had(tmp_path: Path) -> None:
    given = progressive_schedule("standard", LIMIT, 3600.0, MODEL)
    granted = minute_granter(Store(tmp_path), lambda: 3000.0)
    assert granted(given.cuts[0], 0) == given.cuts[0].minutes
    again = minute_granter(Store(tmp_path), lambda: 3500.0)  # its own clock has just begun
    again(given.cuts[0], 0)
    left = 3000 / 60 - given.cuts[0].minutes - given.final.refit_minutes
    assert again(given.final, 1) == pytest.approx(left, abs=0.05)


@pytest.mark.parametrize(("slots", "tried"), [(2, True), (10, False)])
def test_mixing_without_a_fair_chance_is_not_tried(slots: int, tried: bool) -> None:
    faster = {2: 0.5, 5: 0.5, 10: 0.5, slots: 3.0}
    found = World(
        {2: 0.012, 3: 0.018, 4.2: 0.041}, mixed=lambda _: 0.5, mixing=faster
    ).searched()
    assert any("mux" in str(x.pipeline) for x in found.trials) is tried


def test_an_unknown_effort_is_refused() -> None:
    message = "effort is 'fast', it must be one of quick, standard, thorough"
    with pytest.raises(UsageError, match=message):
        Request(model="x", effort="fast")  # type: ignore[arg-type]
