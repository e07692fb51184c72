"""The search tries the bag of embeddings by itself and as the first stage of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run import plan, request
from prumux.optimizer.search.accuracy_model import Shape
from prumux.optimizer.search.acquisition import TimedCandidate
from prumux.optimizer.search.bisection import (
    SearchResult,
    Trial,
    no_cascade,
    search_by_bisection,
)
from prumux.optimizer.search.cascades import bag_candidate
from prumux.optimizer.search.progressive import SearchActions
from prumux.optimizer.search.progressive_certificates import search_progressively
from tests.helpers import searches
from tests.search.test_presets import FITTED, World
from tests.search.test_presets import LIMIT as LIMIT_TRAINED

ORDER = [Pipeline.parse(f"prune-ffn{{ratio=0.{i}}},slice") for i in range(1, 8)]
BAG = Pipeline.parse("bag")
CASCADE = Pipeline.parse('bag,cascade{to="pool-early"}')
LIMIT = 0.03
ROWS = 2000


def found_by(
    loss: float | None, *, cascade: bool = False, fails: Sequence[Pipeline] = ()
) -> tuple[SearchResult, list[Pipeline]]:
    """Bisection over losses of 1 to 7 points, and a bag with its loss; None = it fails."""
    proved: list[Pipeline] = []

    def trial(pipeline: Pipeline) -> Trial:
        if pipeline == BAG:
            if loss is None:
                raise PassError("no bag of this", exit_code=2)
            return Trial(pipeline, 1 - loss, loss, 0.0, 1)
        if pipeline == CASCADE:
            return Trial(pipeline, 0.99, 0.01, 0.0, 20)
        at = ORDER.index(pipeline) + 1
        return Trial(pipeline, 1 - at / 100, at / 100, 0.0, 100 - at)

    def certify(pipeline: Pipeline, confidence: float) -> Certificate:
        proved.append(pipeline)
        upper = 1.0 if pipeline in fails else 0.0
        return Certificate("a", 9, 1.0, 1.0, 0.0, upper, confidence, LIMIT, "made up")

    def extend(tried: Sequence[Trial], most_macs: float | None) -> list[Pipeline]:
        del most_macs
        assert BAG in [x.pipeline for x in tried]
        return [CASCADE]

    found = search_by_bisection(
        ORDER,
        trial,
        certify,
        LIMIT,
        lambda _: False,
        safe=0.01,
        rows=ROWS,
        extend=extend if cascade else no_cascade,
        apart=BAG,
    )
    return found, proved


def test_one_that_keeps_the_limit_is_certified_last_and_ends_the_search() -> None:
    found, proved = found_by(0.025)
    assert proved == [ORDER[0], ORDER[1], BAG]  # the third loses more than the bag
    assert found.winner == BAG
    assert found.trials[-1].pipeline == BAG


def test_its_cascade_comes_before_it_and_remains_where_it_fails() -> None:
    found, proved = found_by(0.025, cascade=True, fails=[BAG])
    assert proved[-2:] == [CASCADE, BAG]
    assert found.winner == CASCADE


def test_one_that_loses_too_much_is_a_first_stage_only() -> None:
    found, proved = found_by(0.2, cascade=True)
    assert BAG not in proved
    assert proved[-1] == CASCADE  # all others are slower
    assert found.winner == CASCADE
    assert BAG in [x.pipeline for x in found.trials]


def test_without_one_the_search_is_as_before() -> None:
    found, proved = found_by(None)
    assert proved[-1] == ORDER[-1]
    assert BAG not in [x.pipeline for x in found.trials]


def test_it_is_found_where_no_cut_keeps_the_limit() -> None:
    def trial(pipeline: Pipeline) -> Trial:
        loss = 0.02 if pipeline == BAG else 0.5
        return Trial(pipeline, 1 - loss, loss, 0.0, 1 if pipeline == BAG else 99)

    def certify(pipeline: Pipeline, confidence: float) -> Certificate:
        return Certificate("a", 9, 1.0, 1.0, 0.0, 0.0, confidence, LIMIT, "made up")

    found = search_by_bisection(
        ORDER, trial, certify, LIMIT, lambda _: False, safe=0.01, rows=ROWS, apart=BAG
    )
    assert found.winner == BAG
    assert len(found.proofs) == 1


@dataclass
class BagWorld(World):
    """Trained candidates, and a bag of embeddings."""

    bag: tuple[float, float] = (0.01, 0.01)
    """What it loses, and its bound."""

    def searched(self) -> SearchResult:
        hands = SearchActions(self.trial, self.prove, self.look, self.granted, no_cascade, BAG)
        return search_progressively(self.given, hands, LIMIT_TRAINED, self.rows, FITTED)

    def trial(self, pipeline: Pipeline) -> Trial:
        if pipeline == BAG:
            return Trial(pipeline, 0.9, self.bag[0], 1.0, 1)
        return super().trial(pipeline)

    def prove(self, pipeline: Pipeline, confidence: float) -> Certificate:
        found = super().prove(pipeline, confidence)
        return replace(found, loss_upper=self.bag[1]) if pipeline == BAG else found

    def look(self, space: Sequence[Pipeline]) -> list[TimedCandidate]:
        bag = [TimedCandidate(BAG, Shape(0.01, 1, 0.0), 99.0)] if BAG in space else []
        return [*super().look([x for x in space if x != BAG]), *bag]


@pytest.mark.parametrize(
    ("bag", "ships", "proofs"),
    [((0.019, 0.01), True, 2), ((0.019, 0.9), False, 2), ((0.5, 0.01), False, 1)],
)
def test_beside_trained_candidates(bag: tuple[float, float], ships: bool, proofs: int) -> None:
    found = BagWorld({2: 0.018, 3: 0.05}, bag=bag).searched()
    assert (found.winner == BAG) == ships
    assert len(found.proofs) == proofs
    assert found.winner is not None
    assert BAG in [x.pipeline for x in found.trials]


def test_where_it_cannot_be_tried(tmp_path: Path) -> None:
    options = searches.given(tmp_path)
    asked = request.Request(out=tmp_path / "out", budget=searches.budget("30%"), **options)
    evaluator = plan.plan(asked, Progress()).evaluator
    assert bag_candidate(evaluator) == BAG
    ctx = evaluator.ctx
    by_file = replace(evaluator, ctx=replace(ctx, costs=object()))  # type: ignore[arg-type]
    assert bag_candidate(by_file) is None  # a costs file has no times of it
    tokens = replace(evaluator.model, encoder=replace(evaluator.model.encoder, pooling="all"))
    assert bag_candidate(replace(evaluator, model=tokens)) is None


def test_quick_effort_tries_it_and_it_may_win(tmp_path: Path) -> None:
    options = {**searches.given(tmp_path), "target": "onnx{precision=fp32 fusion=none}"}
    budget = searches.budget("35%")
    first = searches.searched({**options, "budget": budget}, tmp_path / "out")
    (line,) = [x for x in first.lines if x["pipeline"] == "bag"]
    assert 0 < line["select_loss"] < 0.45
    assert first.found.winner == BAG
    again = searches.searched({**options, "budget": budget}, tmp_path / "out")
    first.same_as(again)
    given = {**options, "budget": budget, "passes": "prune-ffn{ratio=0.1|0.2},slice"}
    own = searches.searched(given, tmp_path / "own")
    assert "bag" not in [x["pipeline"] for x in own.lines]
