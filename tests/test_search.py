"""The search decides on losses and certificates only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest

from prumux.optimizer.certify import Certificate
from prumux.optimizer.context import Context
from prumux.optimizer.ir import Model
from prumux.optimizer.passbase import Pass
from prumux.optimizer.pipeline import Pipeline
from prumux.optimizer.search import Found, Trial, find


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
    losses: list[float], uppers: list[float], limit: float = 0.02, budget: int = 10**9
) -> tuple[Found, list[int], list[int]]:
    """Run `find` on made-up losses; returns also what was tried and what was proved."""
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

    found = find(order, trial, prove, limit, lambda _: len(tried) >= budget)
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
