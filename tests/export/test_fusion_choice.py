"""What `fusion=auto` costs: how many engines are opened and how many timed runs are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prumux.export.onnx import Onnx
from prumux.export.runtime import fusion_choice
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.store import Store
from prumux.optimizer.model.model import Model
from prumux.optimizer.timing.interleave import Timing
from tests.helpers.factory import make_context, random_model

LONG_MS = 400.0
"""A pass over the workload that is timed for seven rounds in all."""


@dataclass
class Costs:
    """Stands in for the clock, and counts."""

    ms: dict[str, tuple[float, ...]]
    """Fusion -> milliseconds, round by round; the last is repeated."""
    engines: int = 0
    runs: int = 0
    rounds: dict[str, int] = field(default_factory=dict)

    def interleave(
        self, runs: Sequence[Callable[[], object]], rounds: int, warmup: int, cores: object
    ) -> tuple[Timing, ...]:
        """As the real one, with recorded times."""
        del cores
        self.runs += len(runs) * (rounds + warmup)
        found = []
        for run in runs:
            name = self.names[id(run.args[0])]  # type: ignore[attr-defined]
            start = self.rounds.get(name, 0)
            self.rounds[name] = start + rounds
            ms = self.ms[name]
            found.append(
                Timing(tuple(ms[min(i, len(ms) - 1)] for i in range(start, start + rounds)))
            )
        return tuple(found)

    names: dict[int, str] = field(default_factory=dict)
    """id of an engine -> fusion."""


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    found = Costs({"none": (LONG_MS,), "basic": (440.0,), "all": (420.0,)})
    real_open, real_time = OrtEngine.__init__, fusion_choice.time_graphs

    def init(self: OrtEngine, *args: object, **kwargs: object) -> None:
        found.engines += 1
        real_open(self, *args, **kwargs)  # type: ignore[arg-type]

    def time_graphs(
        graphs: Sequence[fusion_choice.CheckedGraph], workload: object, cores: object
    ) -> object:
        found.names = {id(x.engine): x.fusion for x in graphs}
        return real_time(graphs, workload, cores)  # type: ignore[arg-type]

    monkeypatch.setattr(OrtEngine, "__init__", init)
    monkeypatch.setattr(fusion_choice, "time_graphs", time_graphs)
    monkeypatch.setattr(fusion_choice, "interleave", found.interleave)
    return found


def emit(model: Model, store: Store, folder: Path, **options: int) -> dict[str, object]:
    target = Onnx(**options)  # type: ignore[arg-type]
    return dict(target.emit(model, make_context(model, store=store), folder).notes)


def test_slow_fusions_are_timed_for_two_rounds_and_once_a_run(
    costs: Costs, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store")
    notes = emit(random_model(heads=(4, 3)), store, tmp_path / "dense")
    assert (costs.engines, costs.runs) == (3, 9)  # three graphs: a warm-up and two rounds
    assert costs.rounds == {"none": 2, "basic": 2, "all": 2}
    assert (notes["kept"], notes["dropped"]) == ("none", {})
    assert notes["workload_ms"] == {"none": 400.0, "basic": 440.0, "all": 420.0}
    pruned = emit(random_model(heads=(2, 0), ffn=(8, 24)), store, tmp_path / "pruned")
    assert (costs.engines, costs.runs) == (4, 9)  # the plain graph for parity, nothing timed
    assert (pruned["kept"], pruned["workload_ms"]) == ("none", {})
    assert list(pruned["parity"]) == ["none"]  # type: ignore[call-overload]
    assert pruned["dropped"] == {
        "basic": "takes 1.10 times the plain graph's time, not tried again",
        "all": "takes 1.05 times the plain graph's time, not tried again",
    }


def test_a_fusion_that_pays_is_timed_in_every_round_and_tried_again(
    costs: Costs, tmp_path: Path
) -> None:
    costs.ms["all"] = (0.9 * LONG_MS,)
    store = Store(tmp_path / "store")
    assert emit(random_model(heads=(4, 3)), store, tmp_path / "a")["kept"] == "all"
    # basic: two rounds; none and all: seven; one warm-up each
    assert (costs.engines, costs.runs) == (3, 2 + 7 + 7 + 3)
    before = costs.runs
    costs.rounds = {}
    assert emit(random_model(heads=(2, 3)), store, tmp_path / "b")["kept"] == "all"
    assert (costs.engines, costs.runs - before) == (5, 7 + 7 + 2)


@pytest.mark.parametrize(
    ("fused_ms", "kept", "rounds"),
    [
        ((420.0, 380.0), "all", 7),  # one lost round of seven is allowed
        ((420.0, 380.0, 420.0, 380.0), "none", 4),  # the second one ends it
        ((380.0, 380.0, 420.0, 420.0, 380.0), "none", 4),
        ((380.0, 380.0, 380.0, 380.0, 380.0, 420.0, 380.0), "all", 7),
        ((399.0,), "none", 7),  # faster in every round, and by too little
    ],
)
def test_timing_stops_where_the_decision_is_known(
    costs: Costs, tmp_path: Path, fused_ms: tuple[float, ...], kept: str, rounds: int
) -> None:
    costs.ms["all"] = fused_ms
    notes = emit(random_model(heads=(4, 3)), Store(), tmp_path)
    assert (notes["kept"], costs.rounds["all"]) == (kept, rounds)


def test_short_passes_have_more_rounds(costs: Costs, tmp_path: Path) -> None:
    costs.ms = {"none": (10.0,), "basic": (11.0,), "all": (9.0,)}
    emit(random_model(heads=(4, 3)), Store(), tmp_path)
    assert costs.rounds == {"none": 11, "basic": 4, "all": 11}


@pytest.mark.parametrize("other", ["wider", "opset"])
def test_other_shapes_are_tried_afresh(costs: Costs, tmp_path: Path, other: str) -> None:
    store = Store(tmp_path / "store")
    emit(random_model(heads=(4, 3)), store, tmp_path / "a")
    model = random_model(heads=(4, 3), hidden=96 if other == "wider" else 48)
    emit(model, store, tmp_path / "b", opset=18 if other == "opset" else 17)
    assert (costs.engines, costs.runs) == (6, 18)


def test_without_a_store_every_export_decides_for_itself(costs: Costs, tmp_path: Path) -> None:
    for name in ("a", "b"):
        emit(random_model(heads=(4, 3)), Store(), tmp_path / name)
    assert (costs.engines, costs.runs) == (6, 18)


def test_int8_opens_no_fused_graph(costs: Costs, tmp_path: Path) -> None:
    model = random_model(heads=(4, 3), hidden=64)
    Onnx(precision="int8").emit(model, make_context(model), tmp_path)
    assert (costs.engines, costs.runs) == (2, 0)
