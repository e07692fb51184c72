"""The default families, and how they are climbed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest

from prumux.optimizer.certify import Certificate
from prumux.optimizer.climb import Hands, climb
from prumux.optimizer.effort import LADDERS, Step, default_space, family, minutes_left
from prumux.optimizer.errors import PassError, UsageError
from prumux.optimizer.explore import Candidate
from prumux.optimizer.job import Request
from prumux.optimizer.pipeline import Pipeline
from prumux.optimizer.search import Found, Trial
from prumux.optimizer.store import Store
from prumux.optimizer.surrogate import Shape, fit
from prumux.optimizer.trained_search import granting
from tests.factory import random_model

LIMIT = 0.02
LONG = 99.0
SAFE_LOSS = 0.01
FITTED = partial(fit, rows=2000)
MODEL = random_model("bert")
MIXING = {2: 1.8, 5: 2.0, 10: 3.0}
SLOW_MIXING = {2: 0.0, 5: 0.0, 10: 0.0}


def climbed(
    losses: Sequence[tuple[float, float]],
    uppers: Sequence[float],
    trials_allowed: int = 10**9,
    safe: tuple[float, float] = (1.0, 1.0),
    mixing: Mapping[int, float] = SLOW_MIXING,
) -> tuple[Found, list[str]]:
    """Climb the family of 2 % whose member i loses `losses[i]`: trained briefly, and for long.

    Mixing does not change these.

    Args:
        losses: see above.
        uppers: what is proved of them.
        trials_allowed: no time is left after these.
        safe: what the safe candidate loses, and its bound.
        mixing: how much faster n rows in one are than one by one.
    """
    given = family("standard", LIMIT, 3600.0, MODEL)
    rungs = [cuts(x.text)[0] for x in given.steps]
    tried: list[str] = []

    def where(pipeline: Pipeline) -> int:
        return rungs.index(cuts(pipeline)[-1])

    def trial(pipeline: Pipeline) -> Trial:
        if pipeline == given.safe:
            return Trial(pipeline, 0.9, safe[0], 1.0, 200)
        tried.append(str(pipeline))
        loss = losses[where(pipeline)][str(pipeline).endswith(f"minutes={LONG}}}")]
        return Trial(pipeline, 0.9, loss, 1.0, 100)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        upper = safe[1] if pipeline == given.safe else uppers[where(pipeline)]
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, upper, confidence, LIMIT, "tango")

    def granted(step: Step, number: int) -> float:
        assert number == len(tried)
        if tried and len(tried) >= trials_allowed:
            return 0.0
        return min(step.minutes, LONG)

    def look(space: Sequence[Pipeline]) -> list[Candidate]:
        return [looked_at(x, mixing) for x in space]

    return climb(given, Hands(trial, prove, look, granted), LIMIT, SAFE_LOSS, FITTED), tried


def looked_at(pipeline: Pipeline, mixing: Mapping[int, float] = SLOW_MIXING) -> Candidate:
    """Its speed-up is what was asked for, and what mixing is said to give."""
    speedup, mux = cuts(pipeline)[-1], [x for x in pipeline.passes if x.name == "mux"]
    shape = Shape(1 / speedup, *((mux[0].mixes, 0.5) if mux else (1, 1.0)))
    return Candidate(pipeline, shape, speedup * (mixing[mux[0].mixes] if mux else 1.0))


def trained_by(
    trial: Callable[[Pipeline], Trial], prove: Callable[[Pipeline, float], Certificate]
) -> Hands:
    """With all the time in the world."""

    def look(space: Sequence[Pipeline]) -> list[Candidate]:
        return [looked_at(x) for x in space]

    return Hands(trial, prove, look, lambda step, _: min(step.minutes, LONG))


def cuts(pipeline: object) -> list[float]:
    return [float(x) for x in re.findall(r"speedup=([\d.]+)", str(pipeline))]


def test_members_go_on_from_each_other() -> None:
    _, *members = map(str, family("standard", 0.02, 600.0, MODEL).members())
    assert len(members) == len(LADDERS["standard"]) - 1
    for before, after in pairwise(members):
        assert after.startswith(before + ",prune{speedup=")
    trained = re.findall(r"distill{minutes=([\d.]+)}", members[-1])
    assert set(trained) == {"0.4"}, "a share of ten minutes"
    counted = map(str, family("standard", 0.02, 600.0, MODEL, measured=False).members())
    assert all("of=macs" in x and "speedup" not in x for x in counted)


def test_a_tight_budget_begins_with_less() -> None:
    tight, wide = (family("standard", points, 600.0, MODEL) for points in (0.01, 0.02))
    assert cuts(tight.members()[1]) == [1.5]
    assert cuts(wide.members()[1]) == [2]
    assert "sparsity=0.25 " in str(tight.safe)
    assert "sparsity=0.5 " in str(wide.safe)


def test_half_an_hour_never_ends_with_nothing() -> None:
    good, bad = [(0.015, 0.01)] * 8, [0.03] * 8
    found, _ = climbed(good, bad, safe=(0.001, 0.015))
    assert "distill" not in str(found.winner)
    assert found.certificate == found.proofs[0][1]
    assert "the safe candidate, without training" in found.reason
    assert "at most 3.00%" in found.reason


@pytest.mark.parametrize(
    ("safe", "proofs"),
    [
        ((0.001, 0.015), [0.99, 0.95, 0.95]),  # its share of the errors passes on
        ((0.001, 0.025), [0.99, 0.96, 0.96]),  # its share is spent
        ((0.021, 0.015), [0.95, 0.95]),  # lost too much on the select rows: never asked
    ],
)
def test_all_proofs_together_err_in_one_run_of_twenty(
    safe: tuple[float, float], proofs: list[float]
) -> None:
    found, _ = climbed([(0.009, 0.0), (0.03, 0.015), *[(1.0, 1.0)] * 6], [0.01] * 8, safe=safe)
    assert [x.confidence for _, x in found.proofs] == pytest.approx(proofs)
    assert cuts(found.winner) == [2, 3]


@pytest.mark.parametrize("effort", ["quick", "standard", "thorough"])
def test_every_effort_has_candidates_that_are_cut(effort: str) -> None:
    for pipeline in default_space(effort, 0.02, None, MODEL):  # type: ignore[arg-type]
        assert not pipeline.uncut


def test_the_first_cut_that_loses_too_much_is_trained_for_all_that_is_left() -> None:
    losses = [(0.012, 1.0), (0.016, 1.0), (0.024, 0.014), *[(0.0, 0.0)] * 5]
    found, tried = climbed(losses, [0.03, 0.03, 0.01, *[0.0] * 5])
    assert [cuts(x) for x in tried] == [[2], [2, 3], [2, 3, 4.2], [2, 3, 4.2]]
    assert tried[-1] == f"{tried[-2]},distill{{minutes={LONG}}}"
    assert str(found.winner) == tried[-1]
    assert len(found.proofs) == 1, "those on the way are near the limit"


def test_easy_cuts_are_passed_over_but_not_the_last() -> None:
    _, tried = climbed([(0.004, 0.004)] * 8, [0.01] * 8)
    assert cuts(tried[-1]) == [2, 4.2, 7.5, 14, 20]


def test_mixing_that_beats_the_deeper_cut_goes_on_instead_of_it() -> None:
    losses = [(0.012, 1.0), (0.016, 0.014), (0.04, 0.03), *[(0.0, 0.0)] * 5]
    found, tried = climbed(
        losses, [0.03, 0.01, 0.03, *[0.0] * 5], mixing={2: 1.5, 5: 3, 10: 9}
    )
    assert [x.count("mux{n=2 at=2}") for x in tried] == [0, 0, 0, 1, 1]
    assert [cuts(x) for x in tried[3:]] == [[2, 3], [2, 3]]
    assert str(found.winner) == tried[-1]
    assert tried[-1] == f"{tried[-2]},distill{{minutes={LONG}}}"
    assert len(found.trials) == len(tried) + 1, "and the safe one"


def climbed_with(
    mixed: float,
    on_the_way: float,
    further: float,
    mixing: Mapping[int, float] = MIXING,
) -> Found:
    """Mixing loses `mixed`, the first cut `on_the_way`, each further one so much more."""
    given = family("standard", LIMIT, 3600.0, MODEL)

    def trial(pipeline: Pipeline) -> Trial:
        cut = on_the_way + further * (len(cuts(pipeline)) - 1)
        return Trial(pipeline, 0.9, mixed if "mux" in str(pipeline) else cut, 1.0, 100)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        del pipeline
        return Certificate("accuracy", 9, 0.9, 0.9, 0.0, 0.01, confidence, LIMIT, "tango")

    def look(space: Sequence[Pipeline]) -> list[Candidate]:
        return [looked_at(x, mixing) for x in space]

    hands = replace(trained_by(trial, prove), look=look)
    return climb(given, hands, LIMIT, SAFE_LOSS, FITTED)


@pytest.mark.parametrize(("mixed", "goes_on"), [(0.5, False), (0.023, True)])
def test_mixing_that_loses_more_than_the_deeper_cut_is_dropped(
    mixed: float, goes_on: bool
) -> None:
    found = climbed_with(mixed, 0.012, 0.012)
    assert ("mux" in str(found.winner)) is goes_on
    assert any("mux" in str(x.pipeline) for x in found.trials)


@pytest.mark.parametrize(("mixed", "goes_on"), [(0.021, False), (0.019, True)])
def test_where_no_cut_loses_too_much_mixing_has_to_keep_the_limit(
    mixed: float, goes_on: bool
) -> None:
    found = climbed_with(mixed, 0.011, 0.0)
    assert len(cuts(found.winner)) == len(LADDERS["standard"]) - 1
    assert ("mux" in str(found.winner)) is goes_on


def test_a_cut_well_within_the_limit_is_proved_before_the_last() -> None:
    losses = [(0.006, 1.0), (0.009, 1.0), (0.03, 0.018), *[(0.0, 0.0)] * 5]
    found, _ = climbed(losses, [1.0, 0.012, 0.025, *[0.0] * 5])
    assert [cuts(x) for x, _ in found.proofs] == [[2, 3], [2, 3, 4.2]]
    assert cuts(found.winner) == [2, 3]
    assert "the next could lose up to 2.50%" in found.reason
    losses[2] = (0.03, 0.008)
    found, _ = climbed(losses, [1.0, 1.0, 0.015, *[0.0] * 5])
    assert [cuts(x) for x, _ in found.proofs] == [[2, 3, 4.2]], "the last one is, too"


def climbed_as_far_as(most: float, loss: float = 0.01, safe: bool = True) -> Found:
    """Cuts beyond `most` cannot be made; all others lose `loss`."""
    given = family("standard", LIMIT, 3600.0, MODEL)

    def trial(pipeline: Pipeline) -> Trial:
        if max(cuts(pipeline), default=0.0 if safe else math.inf) > most:
            raise PassError("embeddings and head alone take longer", exit_code=2)
        return Trial(pipeline, 0.9, loss, 1.0, 100)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        del pipeline
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, 0.01, confidence, LIMIT, "tango")

    return climb(given, trained_by(trial, prove), LIMIT, SAFE_LOSS, FITTED)


def test_a_cut_that_is_out_of_reach_ends_the_climb() -> None:
    found = climbed_as_far_as(6.5)
    assert cuts(found.winner) == [2, 3, 4.2, 5.5]
    assert str(found.winner).endswith(f"distill{{minutes={LONG}}}")


def test_out_of_reach_after_one_was_passed_over() -> None:
    assert cuts(climbed_as_far_as(6.5, loss=0.004).winner) == [2, 4.2, 5.5]


def test_where_no_cut_is_in_reach_the_safe_candidate_is_shipped() -> None:
    found = climbed_as_far_as(1.0)
    assert found.winner == family("standard", LIMIT, 3600.0, MODEL).safe
    assert [x.confidence for _, x in found.proofs] == [0.99]
    with pytest.raises(PassError, match="embeddings and head alone"):
        climbed_as_far_as(1.0, safe=False)


def test_a_long_training_that_fails_leaves_what_was_there() -> None:
    def trial(pipeline: Pipeline) -> Trial:
        if f"{{minutes={LONG}}}" in str(pipeline):
            raise PassError("training diverged", exit_code=2)
        return Trial(pipeline, 0.9, 0.01 * len(cuts(pipeline)), 1.0, 100)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        del pipeline
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, 0.01, confidence, LIMIT, "tango")

    given = family("standard", LIMIT, 3600.0, MODEL)
    found = climb(given, trained_by(trial, prove), LIMIT, SAFE_LOSS, FITTED)
    assert cuts(found.winner) == [2, 3, 4.2]


def test_the_end_of_the_time_is_said() -> None:
    found, tried = climbed([(0.015, 0.01)] * 8, [0.01] * 8, trials_allowed=3)
    assert len(tried) == 3
    assert str(found.winner) == tried[-1]
    assert "stopped by the time limit after 4 trials" in found.reason


def test_no_time_at_all_still_tries_one() -> None:
    found, tried = climbed([(0.05, 0.05)] * 8, [0.5] * 8, trials_allowed=0)
    assert len(tried) == 1
    assert found.winner is None
    assert not found.proofs, "another precision may do: no certify row was asked"
    assert "lost 5.00% on the select rows, above the limit 2.00%" in found.reason
    found, _ = climbed([(0.05, 0.05)] * 8, [0.5] * 8, trials_allowed=0, safe=(0.01, 0.05))
    assert [x.confidence for _, x in found.proofs] == pytest.approx([0.99, 0.96])
    assert found.winner is None


def test_a_training_gets_the_time_that_is_left_or_is_not_begun() -> None:
    step = Step("prune{speedup=2},slice,distill{minutes=MINUTES}", 10.0, least=3.0)
    assert minutes_left(step, left=0.0, number=0) == 10.0, "something is always tried"
    assert minutes_left(step, left=15.0, number=1) == 10.0
    assert minutes_left(step, left=8.5, number=1) == 7.5
    assert minutes_left(step, left=3.0, number=1) == 0.0
    assert minutes_left(replace(step, keep=8.0), left=15.0, number=1) == 6.0
    assert minutes_left(replace(step, minutes=math.inf), left=15.0, number=1) == 14.0
    text = "learn-masks{speedup=2 minutes=MINUTES},slice,distill{minutes=MINUTES}"
    assert minutes_left(Step(text, 4.0, least=1.0), left=8.0, number=1) == 3.0


def test_a_resumed_run_trains_as_long_as_it_was_going_to(tmp_path: Path) -> None:
    left_s = 3600.0
    granted = granting(Store(tmp_path), lambda: left_s)
    given = family("standard", LIMIT, 3600.0, MODEL)
    before = granted(given.steps[0], 1)
    assert before == given.steps[0].minutes
    left_s = 120.0
    assert granting(Store(tmp_path), lambda: left_s)(given.steps[0], 1) == before
    assert granted(given.rest, 1) == 0.0, "another step, though the trial has the same number"
    assert granted(given.steps[0], 2) == 0.0


def test_a_resumed_run_has_no_more_time_than_it_had(tmp_path: Path) -> None:
    given = family("standard", LIMIT, 3600.0, MODEL)
    granted = granting(Store(tmp_path), lambda: 3000.0)
    assert granted(given.steps[0], 0) == given.steps[0].minutes
    again = granting(Store(tmp_path), lambda: 3500.0)  # its own clock has just begun
    again(given.steps[0], 0)
    left = 3000 / 60 - given.steps[0].minutes - given.rest.refit
    assert again(given.rest, 1) == pytest.approx(left, abs=0.05)


@pytest.mark.parametrize(("slots", "tried"), [(2, True), (10, False)])
def test_mixing_without_a_fair_chance_is_not_tried(slots: int, tried: bool) -> None:
    faster = {2: 0.5, 5: 0.5, 10: 0.5, slots: 3.0}
    found = climbed_with(0.5, 0.012, 0.012, faster)
    assert any("mux" in str(x.pipeline) for x in found.trials) is tried


def test_an_unknown_effort_is_refused() -> None:
    message = "effort is 'fast', it must be one of quick, standard, thorough"
    with pytest.raises(UsageError, match=message):
        Request(model="x", effort="fast")  # type: ignore[arg-type]
