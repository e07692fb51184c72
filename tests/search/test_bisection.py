"""The search decides on losses and certificates only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.bisection import SearchResult, Trial, search_by_bisection


@dataclass(frozen=True)
class Step(Pass):
    """A candidate with a number."""

    name: ClassVar[str] = "step"
    at: int = 0

    def run(self, model: Model, ctx: Context) -> Model:
        """Nothing."""
        del ctx
        return model


def search(
    losses: list[float],
    uppers: list[float],
    limit: float = 0.02,
    budget: int = 10**9,
    safe: float = 0.01,
) -> tuple[SearchResult, list[int], list[int]]:
    """Run the bisection on made-up losses; returns also the tried and the certified ones."""
    order = [Pipeline((Step(at=i),)) for i in range(len(losses))]
    tried: list[int] = []
    proved: list[int] = []

    def trial(pipeline: Pipeline) -> Trial:
        at = order.index(pipeline)
        tried.append(at)
        return Trial(pipeline, 0.9 - losses[at], losses[at], 1.0, 100 - at)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        at = order.index(pipeline)
        proved.append(at)
        return Certificate(
            "accuracy",
            900,
            0.9,
            0.9 - losses[at],
            losses[at],
            uppers[at],
            confidence,
            limit,
            "tango",
        )

    found = search_by_bisection(
        order, trial, prove, limit, lambda _: len(tried) >= budget, safe=safe, rows=900
    )
    return found, tried, proved


def test_takes_the_fastest_that_is_certified() -> None:
    losses = [0.001 * i for i in range(30)]
    found, tried, proved = search(losses, [x + 0.005 for x in losses])
    assert found.winner == Pipeline((Step(at=15),))
    assert found.certificate is not None
    assert found.certificate.holds
    assert len(tried) == len(set(tried)), "no candidate is tried twice"
    assert proved == sorted(proved), "candidates are certified from the slowest up"
    assert proved[-1] == 16
    assert "2.10%" in found.reason


def test_stops_at_the_first_failed_certificate_even_if_a_later_one_would_hold() -> None:
    losses = [0.0] * 8
    uppers = [0.01, 0.01, 0.01, 0.01, 0.01, 0.03, 0.01, 0.01]
    found, _, proved = search(losses, uppers)
    assert proved == [3, 5], "6 and 7 were tried and would hold, but come after a failure"
    assert found.winner == Pipeline((Step(at=3),))


def test_no_candidate_within_the_limit() -> None:
    found, _, proved = search([0.05, 0.06, 0.07], [0.1] * 3)
    assert found.winner is None
    assert proved == []
    assert "step, lost 5.00% on the select rows, above the limit 2.00%" in found.reason


def test_nothing_certified() -> None:
    found, _, proved = search([0.0, 0.0, 0.0], [0.04, 0.05, 0.06])
    assert found.winner is None
    assert len(proved) == 1
    assert "at most" in found.reason
    assert "above the limit 2.00%" in found.reason


def test_time_limit_keeps_what_there_is() -> None:
    losses = [0.001 * i for i in range(30)]
    found, tried, _ = search(losses, [x + 0.001 for x in losses], budget=2)
    assert len(tried) == 2
    assert found.winner is not None


@pytest.mark.parametrize("edge", range(1, 20))
def test_finds_the_edge_wherever_it_is(edge: int) -> None:
    losses = [0.0 if i < edge else 1.0 for i in range(20)]
    found, _, _ = search(losses, losses)
    assert found.winner == Pipeline((Step(at=edge - 1),))


def test_goes_on_beyond_what_the_select_rows_allow_while_proofs_hold() -> None:
    losses = [0.0, 0.005, 0.01, 0.03, 0.05, 0.09]
    found, tried, proved = search(losses, [0.01, 0.01, 0.015, 0.018, 0.021, 0.01])
    assert found.winner == Pipeline((Step(at=3),))
    assert proved[-2:] == [3, 4], "and not 5, which comes after a failure"
    assert 5 not in tried


def test_an_unsafe_start_begins_with_the_slowest_and_one_half_way() -> None:
    losses, uppers = [0.005] * 12, [0.01] * 4 + [0.03] * 8
    found, _, proved = search(losses, uppers, safe=0.001)
    assert proved == [0, 2, 5]
    assert found.winner == Pipeline((Step(at=2),))
    found, _, proved = search(losses, uppers, safe=0.005)
    assert found.winner is None, "which is why"


def test_a_candidate_beyond_that_cannot_be_built_ends_the_search() -> None:
    order = [Pipeline((Step(at=i),)) for i in range(4)]

    def trial(pipeline: Pipeline) -> Trial:
        at = order.index(pipeline)
        if at == 3:
            raise PassError("out of reach")
        return Trial(pipeline, 0.9, 0.03 if at == 2 else 0.0, 1.0, 100 - at)

    def prove(pipeline: Pipeline, confidence: float) -> Certificate:
        return Certificate("accuracy", 900, 0.9, 0.9, 0.0, 0.01, confidence, 0.02, "tango")

    found = search_by_bisection(
        order, trial, prove, 0.02, lambda _: False, safe=0.01, rows=900
    )
    assert found.winner == order[2]
