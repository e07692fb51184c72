"""The default families, and how they are climbed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import pytest

from prumux.optimizer.certify import Certificate
from prumux.optimizer.effort import LADDERS, Step, default_space, family, minutes_left
from prumux.optimizer.errors import PassError, UsageError
from prumux.optimizer.job import Request
from prumux.optimizer.pipeline import Pipeline
from prumux.optimizer.search import Found, Trial, climb

LIMIT = 0.02


def climbed(
    losses: Sequence[Sequence[float]],
    uppers: Sequence[float],
    trials_allowed: int = 10**9,
    safe: tuple[float, float] = (1.0, 1.0),
) -> tuple[Found, list[str]]:
    """Climb a family whose member i loses `losses[i][k]` after k more rounds of training.

    `safe`: what the safe candidate loses, and its bound.
    """
    given = family("standard", 60.0)
    tried: list[str] = []

    def where(pipeline: Pipeline) -> tuple[int, int]:
        text = str(pipeline)
        member = text.count("prune{") - 1
        return member, text.rpartition("prune{")[2].count("distill") - 1

    def trial(pipeline: Pipeline) -> Trial:
        if pipeline == given.safe:
            return Trial(pipeline, 0.9, safe[0], 1.0, 200)
        member, rounds = where(pipeline)
        tried.append(str(pipeline))
        return Trial(pipeline, 0.9, losses[member][rounds], 1.0, 100 - member)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        upper = safe[1] if pipeline == given.safe else uppers[where(pipeline)[0]]
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, upper, confidence, LIMIT, "tango")

    def granted(step: Step, number: int) -> float:
        assert number == len(tried)
        return step.minutes if not tried or len(tried) < trials_allowed else 0.0

    return climb(given, trial, prove, LIMIT, granted), tried


def test_members_go_on_from_each_other() -> None:
    _, *members = map(str, family("standard", 600.0).members())
    assert len(members) == len(LADDERS["standard"])
    for before, after in pairwise(members):
        assert after.startswith(before + ",prune{speedup=")
    trained = [float(x) for x in re.findall(r"distill{minutes=([\d.]+)}", members[-1])]
    assert trained == sorted(trained)
    assert trained[:3] == [0.3, 1.0, 6.5], "shares of ten minutes"
    counted = [str(x) for x in family("standard", 600.0, measured=False).members()]
    assert all("of=macs" in x and "speedup" not in x for x in counted)


def test_half_an_hour_never_ends_with_nothing() -> None:
    good, bad = [[0.01]] * 6, [0.03] * 6
    found, _ = climbed(good, bad, safe=(0.001, 0.015))
    assert "distill" not in str(found.winner)
    assert found.certificate == found.proofs[0][1]
    assert "the safe candidate, without training" in found.reason
    assert "at most 3.00%" in found.reason


@pytest.mark.parametrize(
    ("safe", "proofs"),
    [
        ((0.001, 0.015), [0.99] + [0.95] * 4),  # its share of the errors passes on
        ((0.001, 0.025), [0.99] + [0.96] * 4),  # its share is spent
        ((0.021, 0.015), [0.96] * 4),  # lost too much on the select rows: never asked
    ],
)
def test_all_proofs_together_err_in_one_run_of_twenty(
    safe: tuple[float, float], proofs: list[float]
) -> None:
    found, _ = climbed([[0.01]] * 6, [0.01] * 6, safe=safe)
    assert [x.confidence for _, x in found.proofs] == pytest.approx(proofs)
    assert str(found.winner).count("prune{") == 6


@pytest.mark.parametrize("effort", ["quick", "standard", "thorough"])
def test_every_effort_has_candidates_that_are_cut(effort: str) -> None:
    for pipeline in default_space(effort, None):  # type: ignore[arg-type]
        assert not pipeline.uncut


def test_a_member_is_trained_until_it_is_good_enough() -> None:
    losses = [[0.01], [0.05, 0.03, 0.015], *[[0.01]] * 4]
    found, tried = climbed(losses, [0.01] * 6)
    assert len(tried) == 8
    assert found.winner is not None
    assert str(found.winner).count("distill") == 8
    members = [str(x) for x, _ in found.proofs]
    assert [x.count("prune{") for x in members] == [3, 4, 5, 6], "others were on the way"


def test_the_first_failure_ends_the_proofs() -> None:
    found, _ = climbed([[0.01]] * 6, [0.01, 0.03, 0.015, 0.03, 0.01, 0.01])
    assert len(found.proofs) == 2
    assert found.winner is not None
    assert str(found.winner).count("prune{") == 3
    assert "the next could lose up to 3.00%" in found.reason


def test_a_member_that_a_faster_one_beats_is_not_proved() -> None:
    found, _ = climbed([[0.015], [0.01], [0.005], *[[0.01]] * 3], [0.03, *[0.01] * 5])
    assert [str(x).count("prune{") for x, _ in found.proofs] == [3, 4, 5, 6]
    assert found.winner is not None


def test_a_cut_that_is_out_of_reach_ends_the_climb() -> None:
    reached = 4

    def trial(pipeline: Pipeline) -> Trial:
        if str(pipeline).count("speedup") > reached:
            raise PassError("embeddings and head alone take longer", exit_code=2)
        return Trial(pipeline, 0.9, 0.01, 1.0, 100)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        del pipeline
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, 0.01, confidence, LIMIT, "tango")

    given = family("standard", 60.0)
    found = climb(given, trial, prove, LIMIT, lambda step, _: step.minutes)
    assert str(found.winner).count("prune{") == 4
    reached = 0
    with pytest.raises(PassError, match="embeddings and head alone"):
        climb(given, trial, prove, LIMIT, lambda step, _: step.minutes)


def test_the_member_that_time_cut_short_is_proved_last() -> None:
    found, tried = climbed([[0.01], [0.05] * 99, *[[0.01]] * 4], [0.01] * 7, trials_allowed=4)
    assert len(tried) == 4
    assert found.winner is not None
    assert str(found.winner) == tried[-1]
    assert "stopped by the time limit after 4 trials" in found.reason
    found, _ = climbed(
        [[0.01], [0.05] * 99, *[[0.01]] * 4], [0.01, 0.5, *[0.01] * 4], trials_allowed=4
    )
    assert found.winner is None, "one that was a step on the way is no fallback"


def test_no_time_at_all_still_tries_one() -> None:
    found, tried = climbed([[0.05] * 9] * 6, [0.5] * 6, trials_allowed=0)
    assert len(tried) == 1
    assert found.winner is None
    assert "the safest candidate lost" in found.reason


def test_a_training_gets_the_time_that_is_left_or_is_not_begun() -> None:
    step = Step("prune{speedup=2},slice,distill{minutes=MINUTES}", 10.0)
    assert minutes_left(step, left=0.0, number=0) == 10.0, "something is always tried"
    assert minutes_left(step, left=15.0, number=1) == 10.0
    assert minutes_left(step, left=8.5, number=1) == 7.5
    assert minutes_left(step, left=3.0, number=1) == 0.0
    twice = Step("learn-masks{speedup=2 minutes=MINUTES},slice,distill{minutes=MINUTES}", 4.0)
    assert minutes_left(twice, left=8.0, number=1) == 3.0


def test_an_unknown_effort_is_refused() -> None:
    message = "effort is 'fast', it must be one of quick, standard, thorough"
    with pytest.raises(UsageError, match=message):
        Request(model="x", effort="fast")  # type: ignore[arg-type]
