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
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run import plan, request
from prumux.optimizer.run.workspace import open_workspace
from prumux.optimizer.search import cascades
from prumux.optimizer.search.acquisition import TimedCandidate
from prumux.optimizer.search.bisection import SearchResult, Trial, search_by_bisection
from prumux.optimizer.search.cascades import cascade_candidates
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
ROWS = 2000


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

    def extend(tried: Sequence[Trial], most_macs: float | None) -> Sequence[Pipeline]:
        assert most_macs == 97  # of the third candidate, the last within the limit
        assert ORDER[2] in [x.pipeline for x in tried]
        return [added] if added else []

    found = search_by_bisection(
        ORDER, trial, certify, LIMIT, lambda _: False, safe=0.01, rows=ROWS, extend=extend
    )
    return found, proved


def test_it_is_certified_before_riskier_ones_and_slower_ones_are_left_out() -> None:
    found, proved = found_by(ADDED, loss=0.02, macs=95, fails=[ORDER[5]])
    assert proved == [ORDER[0], ADDED, ORDER[5]]  # the second loses as much and is slower
    assert found.winner == ADDED
    assert ADDED in [x.pipeline for x in found.trials]


def test_a_riskier_one_comes_after_surer_ones() -> None:
    found, proved = found_by(ADDED, loss=0.025, macs=95, fails=[ADDED])
    assert proved == [ORDER[0], ORDER[1], ADDED]
    assert found.winner == ORDER[1]


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


def chance(one: Trial, evaluator: Evaluator, limit: float) -> float:
    return one.estimate.chance(limit, len(evaluator.certify_rows))


def test_those_that_undercut_all_surer_candidates_are_chosen(evaluator: Evaluator) -> None:
    trials, limit = tried(evaluator), 0.3
    chosen = cascade_candidates(evaluator, trials, limit, 3)
    assert 1 <= len(chosen) <= 3
    found = [evaluator.trial(x) for x in chosen]
    # The threshold of the pass is that of the search, so cost and loss are as computed.
    for one in found:
        last = one.pipeline.passes[-1]
        assert isinstance(last, Cascade)
        assert last.to in ("pool-early", *(str(x.pipeline) for x in trials))
        surer = [
            x for x in trials if chance(x, evaluator, limit) > chance(one, evaluator, limit)
        ]
        assert all(one.macs < x.macs for x in surer)
    costs = [x.macs for x in found]
    assert costs == sorted(costs, reverse=True)
    assert cascade_candidates(evaluator, trials, -1.0, 3) == ()
    assert len(cascade_candidates(evaluator, trials, limit, 1)) == 1
    cheap = cascade_candidates(evaluator, trials, limit, 3, most_macs=costs[-1])
    assert all(1.2 * evaluator.trial(x).macs < costs[-1] for x in cheap)


def test_the_computed_loss_is_that_of_the_cascade(evaluator: Evaluator) -> None:
    trials = tried(evaluator)
    options = [
        x
        for x in cascades._options(evaluator, trials)
        if x.pipeline.passes[:-1] == trials[-1].pipeline.passes
    ]
    seconds = {str(stage) for x in options for stage in x.pipeline.stages[1:]}
    assert seconds == {"pool-early", str(trials[0].pipeline), str(trials[1].pipeline)}
    for one in options[:: len(options) // 5]:
        found = evaluator.trial(one.pipeline)
        assert found.loss == pytest.approx(one.estimate.loss)
        assert found.changed == pytest.approx(one.estimate.changed)


def test_assumed_losses_of_workers_choose_nothing(evaluator: Evaluator) -> None:
    trials = tried(evaluator)
    assumed = replace(trials[1], pipeline=cut(0.77))
    assert cascade_candidates(evaluator, [*trials, assumed], 1.0, 3) == ()


def test_tasks_and_targets_without_cascades(evaluator: Evaluator) -> None:
    from prumux.export.tensorrt import TensorRt

    trials = tried(evaluator)
    other = replace(evaluator, target=TensorRt(flavor="rtx"))
    assert cascade_candidates(other, trials, 1.0, 3) == ()
    one = replace(evaluator.model, task=replace(evaluator.model.task, labels=("only",)))
    alone = replace(evaluator, model=one)
    assert cascade_candidates(alone, trials, 1.0, 3) == ()


def test_nothing_smaller_was_tried(evaluator: Evaluator) -> None:
    exact = evaluator.trial(Pipeline.parse("pool-early"))
    assert cascade_candidates(evaluator, [exact], 1.0, 3) == ()
    assert cascade_candidates(evaluator, [], 1.0, 3) == ()


def test_quick_effort_tries_some_and_a_given_space_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prumux.optimizer.search import cascades

    target = "onnx{precision=fp32 fusion=none}"
    options = {**searches.given(tmp_path), "target": target}
    asked: list[int] = []

    def candidates(
        evaluator: Evaluator, trials: Sequence[Trial], limit: float, most: int, macs: float
    ) -> list[Pipeline]:
        assert macs < evaluator.builder.cost(Pipeline(())).macs
        asked.append(most)
        deep = min(trials, key=lambda x: x.macs)
        return [deep.pipeline.then(Cascade(to="pool-early", defer=0.3))]

    monkeypatch.setattr(cascades, "cascade_candidates", candidates)
    budget = searches.budget("30%")
    lines = searches.searched({**options, "budget": budget}, tmp_path / "out").lines
    assert asked == [2]
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
    macs: int = 400
    """Of the cascade; the trained candidate needs 500."""

    def searched(self) -> SearchResult:
        hands = SearchActions(self.trial, self.prove, self.look, self.granted, self.extend)
        return search_progressively(self.given, hands, LIMIT_TRAINED, self.rows, FITTED)

    def extend(self, tried: Sequence[Trial], most_macs: float | None) -> list[Pipeline]:
        assert most_macs is None  # no fallback is within the limit
        return [tried[-2].pipeline.then(Cascade(to="pool-early"))]

    def trial(self, pipeline: Pipeline) -> Trial:
        if is_cascade(pipeline):
            return Trial(pipeline, 0.9, self.cascade[0], 1.0, self.macs)
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
        ((0.001, 0.01), 99.0, True, ["cascade"], "cascade"),  # the single one needs more
        ((0.019, 0.01), 99.0, True, ["single", "cascade"], "cascade"),
        ((0.019, 0.01), 1.0, True, ["single", "cascade"], "single"),
        ((0.001, 0.01), 99.0, False, ["cascade"], "cascade"),
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
