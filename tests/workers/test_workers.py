"""Workers make a search quicker and change nothing else. No Ray here: see test_ray.py."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import MissingError, PassError, UsageError
from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store, key
from prumux.optimizer.certificate.certificate import Certificate
from prumux.optimizer.cli.opt import main
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.passes import Pass
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run import choose, packaging, plan
from prumux.optimizer.run import inputs as opening
from prumux.optimizer.run.request import Request
from prumux.optimizer.search import evaluator as evaluation
from prumux.optimizer.search.bisection import Certify, SearchResult, Trial, search_by_bisection
from prumux.optimizer.search.builder import Builder
from prumux.optimizer.timing import serving_point as timing
from prumux.optimizer.timing.calibration import time_ms
from prumux.optimizer.workers import payload as parcel
from prumux.optimizer.workers import ray_cluster as cluster
from prumux.optimizer.workers.payload import Files
from prumux.optimizer.workers.speculation import KEPT, LOST, WorkItem, items_ahead
from prumux.optimizer.workers.workers import Workers
from tests.helpers import searches

LIMIT = 0.02
SPACE = "pool-early,prune{sparsity=0.1|0.2|0.3|0.5|0.7|0.9 of=macs},slice,reconstruct"


@dataclass(frozen=True)
class Numbered(Pass):
    """A candidate with a number."""

    name: ClassVar[str] = "numbered"
    at: int = 0

    def run(self, model: Model, ctx: Context) -> Model:
        """Fails."""
        raise PassError(f"{self.at} is out of reach", exit_code=2)


def holding(loss: float) -> Certificate:
    return Certificate("x", 9, 1.0, 1 - loss, loss, loss, 0.95, LIMIT, "x")


@dataclass
class World:
    """Made-up losses; keeps what the search asked, and what was expected of it before."""

    losses: list[float]
    count: int
    asked: list[WorkItem] = field(default_factory=list)
    expected: list[list[WorkItem]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = [Pipeline((Numbered(at=i),)) for i in range(len(self.losses))]
        self.known: dict[Pipeline, Trial | PassError] = {}
        self.proofs: dict[Pipeline, Certificate] = {}

    def search(self, trial: Any, prove: Certify, late: Any) -> SearchResult:
        safe, rows = LIMIT / 2, 900
        return search_by_bisection(self.order, trial, prove, LIMIT, late, safe=safe, rows=rows)

    def note(self, job: WorkItem) -> None:
        self.asked.append(job)
        tried = self.known.get
        self.expected.append(items_ahead(self.search, tried, self.proofs, LIMIT, self.count))

    def trial(self, pipeline: Pipeline) -> Trial:
        self.note(WorkItem("trial", pipeline))
        loss = self.losses[self.order.index(pipeline)]
        self.known[pipeline] = found = Trial(pipeline, 1 - loss, loss, 1.0, 1)
        return found

    def prove(self, pipeline: Pipeline, confidence: float) -> Certificate:
        del confidence
        self.note(WorkItem("proof", pipeline))
        self.proofs[pipeline] = found = holding(self.losses[self.order.index(pipeline)])
        return found

    def run(self) -> SearchResult:
        return self.search(self.trial, self.prove, lambda _: False)


losses = st.floats(-0.01, 0.06)


@settings(deadline=None)
@given(st.lists(losses, min_size=1, max_size=40))
def test_what_bisection_asks_next_is_started_whatever_came_out(given: list[float]) -> None:
    world = World(given, count=3)
    world.run()
    assert [x[0] for x in world.expected] == world.asked, "the nearest is what is asked"
    low, high, asked = -1, len(given), 0
    while high - low > 1:
        middle = (low + high) // 2
        if asked:
            assert world.asked[asked] in world.expected[asked - 1]
        low, high = (middle, high) if given[middle] <= LIMIT else (low, middle)
        asked += 1


@settings(deadline=None)
@given(st.lists(st.sampled_from([LOST * LIMIT, KEPT * LIMIT]), min_size=1, max_size=40))
def test_proofs_are_foreseen_as_well_where_losses_are_as_imagined(given: list[float]) -> None:
    world = World(given, count=3)
    world.run()
    for before, asked in zip(world.expected, world.asked[1:], strict=False):
        assert asked in before


def test_all_candidates_are_of_use_to_many_workers_each_once() -> None:
    world = World([0.0] * 20, count=1000)
    found = items_ahead(world.search, lambda _: None, {}, LIMIT, 1000)
    assert len(found) == len(set(found))
    assert {x.pipeline for x in found if x.kind == "trial"} == set(world.order)
    assert found[0].pipeline == world.order[9]


def test_what_failed_ends_the_search_and_so_what_is_ahead_of_it() -> None:
    world = World([0.0] * 3, count=5)
    failed = {world.order[1]: PassError("no")}
    assert items_ahead(world.search, failed.get, {}, LIMIT, 5) == []


@dataclass
class Simulated:
    """A cluster whose jobs end in any order, some of them in nothing. No disk is shared."""

    evaluator: evaluation.Evaluator
    workers: Workers
    threads: int
    running: dict[int, tuple[WorkItem, bytes]] = field(default_factory=dict)
    lose: ClassVar[float] = 0.0
    made: ClassVar[list[Simulated]] = []
    done: ClassVar[list[WorkItem]] = []

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(5)
        self.sent = pickle.dumps(parcel.packed(self.evaluator))
        self.made.append(self)
        self.number = 0

    def slots(self) -> int:
        return self.workers.count

    def start(self, job: WorkItem, files: Mapping[str, Path]) -> Hashable:
        assert len(self.running) < self.workers.count
        assert job not in [x for x, _ in self.running.values()] + self.done, "done twice"
        read = {name: path.read_bytes() for name, path in files.items()}
        self.number += 1
        self.running[self.number] = job, pickle.dumps(read)
        return self.number

    def wait(self, handles: Iterable[Hashable]) -> Mapping[Hashable, Files | str]:
        assert set(handles) == set(self.running)
        handle = int(self.random.choice(list(self.running)))
        job, files = self.running.pop(handle)
        self.done.append(job)
        if self.random.random() < self.lose:
            return {handle: "its process died"}
        host = parcel.Host.of(self.evaluator, self.threads)
        evaluator, read = pickle.loads(self.sent), pickle.loads(files)
        return {handle: parcel.work(evaluator, job.kind, str(job.pipeline), read, host)}

    def cancel(self, handle: Hashable) -> None:
        assert isinstance(handle, int)
        self.running.pop(handle)

    def drain(self) -> None:
        assert not self.running


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    given = searches.given(tmp_path_factory.mktemp("job"))
    return given | {"passes": SPACE, "budget": searches.budget("20%")}


@pytest.fixture(autouse=True)
def _one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trials are the same to the last bit with as many threads."""
    monkeypatch.setattr(opening, "cpu_threads", lambda: 1)


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Simulated]]:
    monkeypatch.setattr(cluster, "RayCluster", Simulated)
    monkeypatch.setattr(cluster, "connected", lambda _: nullcontext())
    monkeypatch.setattr(Workers, "check", lambda _: None)
    monkeypatch.setattr(Simulated, "lose", 0.0)
    Simulated.made.clear()
    Simulated.done.clear()
    yield Simulated
    assert all(not x.running for x in Simulated.made), "somebody is still at work"


@pytest.fixture(scope="module")
def alone(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> searches.Searched:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "cpu_threads", lambda: 1)
        return searches.searched(options, tmp_path_factory.mktemp("alone") / "out")


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize("lose", [0.0, 0.4, 1.0])
def test_the_same_is_found_and_kept_as_alone(  # noqa: PLR0917
    count: int,
    lose: float,
    options: dict[str, Any],
    alone: searches.Searched,
    simulated: type[Simulated],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(simulated, "lose", lose)
    made_here: list[Pipeline] = []
    real = evaluation.Evaluator._try

    def watched(self: evaluation.Evaluator, pipeline: Pipeline) -> dict[str, Any]:
        if self.ctx.may_time:  # in this process
            made_here.append(pipeline)
            assert all(not x.running for x in Simulated.made), "timings would be worthless"
        return real(self, pipeline)

    monkeypatch.setattr(evaluation.Evaluator, "_try", watched)
    alone.same_as(searches.searched(options, tmp_path / "out", count))
    if lose == 0:
        assert made_here == []
    if lose == 1:
        assert [str(x) for x in made_here] == [x["pipeline"] for x in alone.lines]


def test_a_search_over_mixing_too(
    options: dict[str, Any], simulated: type[Simulated], tmp_path: Path
) -> None:
    space = (
        "pool-early,prune{sparsity=0.2|0.5 of=macs},slice,mux{n=1|2 at=1},distill{epochs=0.2}"
    )
    mixing = options | {"passes": space, "budget": searches.budget("45%")}
    mixing["metric"] = "balanced-accuracy"  # a constant answer keeps it by accuracy
    out = tmp_path / "out"
    one = searches.searched(mixing, out)
    for path in (out / ".resume").iterdir():
        if not path.name.startswith(("shape-", "run.", "threads.")):  # those are measured
            path.unlink()
    one.same_as(searches.searched(mixing, out, 3))
    assert simulated.done


def test_what_candidates_share_is_trained_once(
    options: dict[str, Any],
    simulated: type[Simulated],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A budget that all candidates keep; a constant answer keeps it, too.
    monkeypatch.setattr("prumux.optimizer.run.plan.check_scores", lambda *_: ())
    space = "learn-masks{sparsity=0.3 of=macs epochs=0.3},slice,distill{epochs=0.1|0.2|0.3}"
    given = options | {"passes": space, "budget": searches.budget("95%")}
    found = searches.searched(given, tmp_path / "out", 3)
    assert found.found.winner is not None
    first = Pipeline.parse("learn-masks{sparsity=0.3 of=macs epochs=0.3}")
    assert len([x for x in simulated.made[0].done if x.kind == "trial"]) >= 2
    evaluator = simulated.made[0].evaluator
    assert evaluator.ctx.store.has(f"model-{key(first)}-facts")
    more = Pipeline.space(space)
    alone = replace(evaluator, ctx=replace(evaluator.ctx, store=Store(tmp_path / "empty")))
    assert alone.builder.shares_training(more[0], more[1])
    assert not evaluator.builder.shares_training(more[0], more[1])


def test_the_whole_run_times_nothing_while_somebody_is_at_work(
    options: dict[str, Any],
    alone: searches.Searched,
    simulated: type[Simulated],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare = timing.compare

    def watched(*given: Any) -> Any:
        assert simulated.made
        assert all(not x.running for x in simulated.made)
        return compare(*given)

    monkeypatch.setattr(packaging, "compare", watched)
    out = tmp_path / "out"
    command = [options["model"], "--data", options["data"], "--passes", SPACE]
    assert main([*command, "--budget", "20%", "--workers", "3", "--out", str(out), "-q"]) == 0
    lines = (out / "trials.jsonl").read_text().splitlines()
    assert searches.untimed(lines) == alone.lines


def test_a_failed_trial_is_recorded_and_not_run_again(
    options: dict[str, Any], tmp_path: Path
) -> None:
    request = Request(**options)
    recorded: list[Mapping[str, Any]] = []
    evaluator = opening.open_evaluator(request, parse_target("onnx"), Progress())
    evaluator = evaluator.with_store(Store(tmp_path), recorded.append)
    pipeline = Pipeline((Numbered(at=3),))
    with pytest.raises(PassError, match="3 is out of reach") as first:
        evaluator.trial(pipeline)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Builder, "build", lambda *_: pytest.fail("built again"))
        with pytest.raises(PassError, match="3 is out of reach") as second:
            evaluator.trial(pipeline)
    assert first.value.exit_code == second.value.exit_code == 2
    assert recorded[0]["pipeline"] == str(pipeline)
    assert "out of reach" in recorded[0]["error"]
    assert isinstance(evaluator.tried(pipeline), PassError)


def test_a_worker_times_nothing(options: dict[str, Any]) -> None:
    evaluator = opening.open_evaluator(Request(**options), parse_target("onnx"), Progress())
    with pytest.raises(MissingError, match="nothing is timed in a worker"):
        time_ms([evaluator.model.encoder], parcel.packed(evaluator).ctx)


def test_a_worker_with_other_versions_is_told_apart(options: dict[str, Any]) -> None:
    evaluator = opening.open_evaluator(Request(**options), parse_target("onnx"), Progress())
    host = parcel.Host.of(evaluator, 1)
    assert host.differs() == ""
    other = replace(host, versions={**host.versions, "torch": "1.0"})
    assert "torch" in other.differs()
    assert "this process 1.0" in other.differs()
    assert "processor" in replace(host, cpu="another").differs()
    found = parcel.work(parcel.packed(evaluator), "trial", SPACE, {}, other)
    assert isinstance(found, str)


def test_numbers_and_addresses() -> None:
    assert Workers.parse(None).here_only
    assert Workers.parse("1").here_only
    assert Workers.parse(4).threads(16) == 4
    assert Workers.parse("4").threads(2) == 1
    assert Workers.parse("ray://host.name:10001").address == "ray://host.name:10001"
    assert not Workers.parse("ray://[::1]:10001").here_only


@pytest.mark.parametrize(
    "given",
    [0, -1, "x", True, 1.5, "", "4 ", "ray://host", "ray://host:0", "http://a:1", "9999"],
)
def test_neither_a_number_nor_an_address(given: Any) -> None:
    with pytest.raises(UsageError, match="--workers 4 or --workers ray://HOST:10001"):
        Request(model="m", workers=given)


def test_bad_values_on_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    for bad in ("0", "-1", "x"):
        assert main(["m", "--budget", "2%", f"--workers={bad}"]) == 2
        assert "--workers ray://HOST:10001" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["2", "ray://localhost:1"])
def test_without_ray_the_install_line(
    asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("prumux.optimizer.workers.workers.find_spec", lambda _: None)
    assert main(["m", "--budget", "2%", "--workers", asked]) == 5
    assert "pip install 'prumux[ray]'" in capsys.readouterr().err


def test_alone_nothing_of_ray_is_imported(
    options: dict[str, Any], tmp_path: Path, alone: searches.Searched
) -> None:
    del alone
    assert not {"ray", "grpc"} & set(sys.modules)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"passes": None, "effort": "standard"},
            "--effort standard trains one candidate",
        ),
        ({"budget": None, "passes": "pool-early"}, "there is one pipeline to run"),
    ],
)
def test_where_workers_bring_nothing_it_says_so(  # noqa: PLR0917
    changes: dict[str, Any],
    said: str,
    options: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Workers, "check", lambda _: None)
    request = Request(**options | changes, workers=2, out=tmp_path / "out")
    assert choose.useful_workers(plan.plan(request, Progress(1))) == Workers()
    assert said in capsys.readouterr().err
