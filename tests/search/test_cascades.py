"""The search makes a cascade of tried candidates where it pays, and certifies it in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.model.cascade import threshold_at
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run import plan, request
from prumux.optimizer.run.workspace import open_workspace
from prumux.optimizer.search import cascades
from prumux.optimizer.search.acquisition import TimedCandidate
from prumux.optimizer.search.bisection import SearchResult, Trial, search_by_bisection
from prumux.optimizer.search.cascades import cascade_candidate
from prumux.optimizer.search.evaluator import Evaluator
from prumux.optimizer.search.progressive import SearchActions
from prumux.optimizer.search.progressive_certificates import search_progressively
from prumux.passes.cascade import Cascade
from tests.helpers import searches
from tests.search.test_presets import FITTED, World
from tests.search.test_presets import LIMIT as LIMIT_TRAINED

ORDER = [Pipeline.parse(f"prune-ffn{{ratio=0.{i}}},slice") for i in range(1, 8)]
ADDED = ORDER[5].then(Cascade(to=str(ORDER[2])))
LIMIT = 0.03


def cut(share: float) -> Pipeline:
    return Pipeline.parse(f"pool-early,prune{{sparsity={share} of=macs}},slice,reconstruct")


def found_by(
    added: Pipeline | None, *, loss: float, macs: int, fails: Sequence[Pipeline] = ()
) -> tuple[SearchResult, list[Pipeline]]:
    """Bisection over losses of 1 to 7 points; the third candidate is the best one."""
    proved: list[Pipeline] = []

    def trial(pipeline: Pipeline) -> Trial:
        if pipeline == added:
            return Trial(pipeline, 1 - loss, loss, 0.0, macs)
        at = ORDER.index(pipeline) + 1
        return Trial(pipeline, 1 - at / 100, at / 100, 0.0, 100 - at)

    def certify(pipeline: Pipeline, confidence: float) -> Certificate:
        proved.append(pipeline)
        upper = 1.0 if pipeline in fails else 0.0
        return Certificate("a", 9, 1.0, 1.0, 0.0, upper, confidence, LIMIT, "made up")

    def extend(tried: Sequence[Trial], best: Trial) -> Pipeline | None:
        assert best.pipeline == ORDER[2]
        assert best in tried
        return added

    found = search_by_bisection(
        ORDER, trial, certify, LIMIT, lambda _: False, safe=0.01, extend=extend
    )
    return found, proved


def test_it_is_certified_after_the_best_and_before_riskier_ones() -> None:
    found, proved = found_by(ADDED, loss=0.02, macs=95, fails=[ORDER[5]])
    after = proved[proved.index(ORDER[2]) + 1 :]
    assert after == [ADDED, ORDER[5]]  # the fourth and fifth are no smaller
    assert found.winner == ADDED
    assert ADDED in [x.pipeline for x in found.trials]


def test_where_it_fails_the_best_single_candidate_remains() -> None:
    found, proved = found_by(ADDED, loss=0.02, macs=90, fails=[ADDED])
    assert proved[-2:] == [ORDER[2], ADDED]
    assert found.winner == ORDER[2]


@pytest.mark.parametrize(
    ("added", "loss", "macs"), [(None, 0.0, 1), (ADDED, 0.05, 90), (ADDED, 0.01, 97)]
)
def test_it_must_keep_the_limit_and_need_less(
    added: Pipeline | None, loss: float, macs: int
) -> None:
    _, proved = found_by(added, loss=loss, macs=macs)
    assert ADDED not in proved
    assert proved[-1] == ORDER[-1]


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Any:
    here = tmp_path_factory.mktemp("given")
    options = searches.given(here)
    asked = request.Request(
        out=here / "out",
        passes="slice",
        budget=searches.budget("20%"),
        target="onnx{precision=fp32 fusion=none}",
        **options,
    )
    todo = plan.plan(asked, Progress())
    workspace = open_workspace(here / "out", todo.facts(), resume=False)
    assert workspace is not None
    yield todo.evaluator.with_store(workspace.store, workspace.record)
    workspace.release()


def tried(evaluator: Evaluator) -> list[Trial]:
    return [evaluator.trial(cut(x)) for x in (0.1, 0.6, 0.9)]


def test_the_cheapest_that_loses_little_is_chosen(evaluator: Evaluator) -> None:
    trials = tried(evaluator)
    best = trials[0]
    chosen = cascade_candidate(evaluator, trials, best, 0.2)
    assert chosen is not None
    found = evaluator.trial(chosen)
    assert found.loss <= 0.2 + 0.02  # the pass chooses the threshold as the search did
    assert found.macs < best.macs / 1.1
    last = chosen.passes[-1]
    assert isinstance(last, Cascade)
    assert last.to in ("pool-early", str(best.pipeline))
    strict = cascade_candidate(evaluator, trials, best, 0.05)
    if strict is not None:
        assert evaluator.trial(strict).macs >= found.macs
    assert cascade_candidate(evaluator, trials, best, -1.0) is None


def test_the_computed_loss_is_that_of_the_cascade(evaluator: Evaluator) -> None:
    first, _, deep = tried(evaluator)
    for second in (first.pipeline, Pipeline.parse("pool-early")):
        margin = cascades._margins(evaluator, deep.pipeline)
        for share in (0.1, 0.4):
            below = margin < threshold_at(margin, share)
            computed = cascades._loss(evaluator, deep.pipeline, second, below)
            made = deep.pipeline.then(Cascade(to=str(second), defer=share))
            assert evaluator.trial(made).loss == pytest.approx(computed)


def test_assumed_losses_of_workers_choose_nothing(evaluator: Evaluator) -> None:
    trials = tried(evaluator)
    assumed = replace(trials[1], pipeline=cut(0.77))
    assert cascade_candidate(evaluator, [*trials, assumed], trials[0], 1.0) is None


def test_tasks_and_targets_without_cascades(evaluator: Evaluator) -> None:
    from prumux.export.tensorrt import TensorRt

    trials = tried(evaluator)
    other = replace(evaluator, target=TensorRt(flavor="rtx"))
    assert cascade_candidate(other, trials, trials[0], 1.0) is None
    one = replace(evaluator.model, task=replace(evaluator.model.task, labels=("only",)))
    alone = replace(evaluator, model=one)
    assert cascade_candidate(alone, trials, trials[0], 1.0) is None


def test_nothing_smaller_was_tried(evaluator: Evaluator) -> None:
    trials = tried(evaluator)
    assert cascade_candidate(evaluator, trials, trials[-1], 1.0) is None


def test_quick_effort_tries_one_and_a_given_space_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prumux.optimizer.search import cascades

    target = "onnx{precision=fp32 fusion=none}"
    options = {**searches.given(tmp_path), "target": target}
    asked: list[float] = []

    def candidate(
        evaluator: Evaluator, trials: Sequence[Trial], best: Trial, most: float
    ) -> Pipeline | None:
        asked.append(most)
        deep = min(trials, key=lambda x: x.macs)
        return deep.pipeline.then(Cascade(to=str(best.pipeline), defer=0.3))

    monkeypatch.setattr(cascades, "cascade_candidate", candidate)
    budget = searches.budget("30%")
    lines = searches.searched({**options, "budget": budget}, tmp_path / "out").lines
    assert len(asked) == 1
    (made,) = [x for x in lines if "cascade" in x["pipeline"]]
    assert np.isfinite(made["select_loss"])
    given = {**options, "budget": budget, "passes": f"{cut(0.3)}"}
    searches.searched(given, tmp_path / "own")
    assert len(asked) == 1  # a space that was given is searched as it is


def is_cascade(pipeline: Pipeline) -> bool:
    return len(pipeline.stages) > 1


@dataclass
class CascadeWorld(World):
    """Trained candidates, of which a cascade is made."""

    cascade: tuple[float, float] = (0.01, 0.01)
    """What it loses, and its bound."""
    faster: float = 99.0

    def searched(self) -> SearchResult:
        hands = SearchActions(self.trial, self.prove, self.look, self.granted, self.extend)
        return search_progressively(self.given, hands, LIMIT_TRAINED, self.rows, FITTED)

    def extend(self, tried: Sequence[Trial], best: Trial) -> Pipeline:
        assert best == tried[-1]
        return tried[-2].pipeline.then(Cascade(to="pool-early"))

    def trial(self, pipeline: Pipeline) -> Trial:
        if is_cascade(pipeline):
            return Trial(pipeline, 0.9, self.cascade[0], 1.0, 90)
        return super().trial(pipeline)

    def prove(self, pipeline: Pipeline, confidence: float) -> Certificate:
        found = super().prove(pipeline, confidence)
        return replace(found, loss_upper=self.cascade[1]) if is_cascade(pipeline) else found

    def look(self, space: Sequence[Pipeline]) -> list[TimedCandidate]:
        return [
            replace(x, throughput=self.faster) if is_cascade(x.pipeline) else x
            for x in super().look(space)
        ]


@pytest.mark.parametrize(
    ("cascade", "faster", "last_holds", "order", "ships"),
    [
        ((0.001, 0.01), 99.0, True, ["cascade", "single"], "cascade"),
        ((0.019, 0.01), 99.0, True, ["single", "cascade"], "cascade"),
        ((0.001, 0.01), 1.0, True, ["cascade", "single"], "single"),
        ((0.001, 0.01), 99.0, False, ["cascade", "single"], "cascade"),
        ((0.001, 0.03), 99.0, True, ["cascade"], "nothing"),
        ((0.019, 0.03), 99.0, True, ["single", "cascade"], "single"),
        ((0.021, 0.01), 99.0, True, ["single"], "single"),  # loses too much on select rows
    ],
)
def test_trained_candidates_and_their_cascade(
    cascade: tuple[float, float], faster: float, last_holds: bool, order: list[str], ships: str
) -> None:
    world = CascadeWorld(
        {2: 0.018, 3: 0.05},
        cascade=cascade,
        faster=faster,
        refused=lambda x: not last_holds and not is_cascade(x),
    )
    found = world.searched()

    def kind(pipeline: Pipeline | None) -> str:
        return (
            "nothing" if pipeline is None else "cascade" if is_cascade(pipeline) else "single"
        )

    assert [kind(x) for x, _ in found.proofs] == order
    assert kind(found.winner) == ships
