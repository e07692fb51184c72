"""`prumux-bench`: each model in its fastest graph, at its own best batch size."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from prumux.export.benchmark.choose import choose
from prumux.export.benchmark.cli import main
from prumux.export.benchmark.engine_kinds import KINDS, OpenOptions, open_kinds
from prumux.export.benchmark.engines import OpenedModel, open_engine
from prumux.export.benchmark.measured import Measured
from prumux.export.benchmark.run import Inputs, measure
from prumux.export.onnx import Onnx
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.base.errors import MissingError, UsageError
from prumux.optimizer.model.artifact import save_artifact
from tests.helpers import jobs
from tests.helpers.factory import make_context, random_model

FIXED_MS, ROW_MS = 2.0, 0.1


class SleepingEngine:
    """Takes a fixed time and a time for each row; each row costs `factor` times as much
    beyond `most` rows."""

    def __init__(self, speed: float = 1.0, most: int = 999, fails_at: int = 999) -> None:
        self.speed, self.most, self.fails_at = speed, most, fails_at
        self.batches: list[int] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(inputs["input_ids"])
        self.batches.append(rows)
        if rows >= self.fails_at:
            raise RuntimeError("out of memory")
        each = ROW_MS if rows <= self.most else 4 * ROW_MS
        time.sleep((FIXED_MS + each * rows) / 1000 / self.speed)
        return np.zeros((rows, 2), np.float32)

    def describe(self) -> Mapping[str, str]:
        return {"engine": "sleep", "device": "cpu"}


def opened(name: str, *graphs: tuple[str, SleepingEngine], side: str = "") -> OpenedModel:
    first, *others = (
        OpenedModel(name, engine, 100, False, 0, graph=graph, side=side)
        for graph, engine in graphs
    )
    return replace(first, others=tuple(others))


def inputs(to: OpenedModel, batch: int) -> list[Inputs]:
    return [{"input_ids": np.zeros((batch, 4), np.int64)}]


@pytest.fixture(autouse=True)
def short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.export.benchmark.run.LEAST_MS", 1.0)
    monkeypatch.setattr("prumux.export.benchmark.choose.LEAST_MS", 1.0)


def test_each_side_gets_its_fastest_graph_at_its_own_best_batch() -> None:
    fused = SleepingEngine(speed=1.5, most=16)
    dense = opened("a", ("plain", SleepingEngine(most=16)), ("fusion=all", fused))
    small = opened("b", ("", SleepingEngine(speed=3)))
    found = choose([dense, small], None, inputs, CoreMonitor())
    assert [(x.opened.graph, x.batch) for x in found.best()] == [("fusion=all", 16), ("", 64)]
    assert {(x.graph, x.batch) for x in found.probes if x.name == "a"} == {
        (graph, n) for graph in ("plain", "fusion=all") for n in (8, 16, 32, 64)
    }
    measured = Measured(found, None, 3, CoreMonitor())
    assert measured.run(measure, lambda: None) is None
    assert [(x.name, x.batch) for x in measured.best] == [("a", 16), ("b", 64)]
    report = measured.report()
    # 3.4 by the engines' times at these two batch sizes; 2 at 16 rows each.
    assert report["throughput_ratio"] > 2.4
    assert report["throughput_ratio"] == report["best"][1]["throughput_ratio"]
    assert report["engines"]["a"]["graph"] == "fusion=all"


def test_batch_sizes_that_are_asked_for_are_all_shown_and_the_best_compared() -> None:
    dense = opened("a", ("plain", SleepingEngine(most=8)))
    other = opened("b", ("", SleepingEngine(speed=2)))
    found = choose([dense, other], (4, 8, 32), inputs, CoreMonitor())
    assert found.probes == []  # one graph each: nothing to choose
    measured = Measured(found, (4, 8, 32), 2, CoreMonitor())
    assert measured.run(measure, lambda: None) is None
    assert [x.batch for x in measured.entries] == [4, 4, 8, 8, 32, 32]
    assert [(x.name, x.batch) for x in measured.best] == [("a", 8), ("b", 32)]
    assert measured.report()["at_batch"] == 8


def test_a_graph_or_a_batch_that_does_not_run_is_named() -> None:
    dense = opened(
        "a",
        ("plain", SleepingEngine(fails_at=64)),
        ("fusion=all", SleepingEngine(speed=9, fails_at=1)),
    )
    found = choose([dense], None, inputs, CoreMonitor())
    assert found.best()[0].opened.graph == "plain"
    assert list(found.not_run) == ["a, plain, batch 64", "a, fusion=all, batch 8"]
    assert "out of memory" in found.not_run["a, plain, batch 64"]
    with pytest.raises(UsageError, match="cannot run int64 inputs of 64x4"):
        choose([dense], (8, 64), inputs, CoreMonitor())


def test_ratios_are_against_the_fastest_engine_of_the_first_model() -> None:
    models = [
        opened("a, torch", ("eager", SleepingEngine()), side="a"),
        opened("a, onnx", ("", SleepingEngine(speed=4)), side="a"),
        opened("b, onnx", ("", SleepingEngine(speed=9)), side="b"),
    ]
    found = choose(models, (8,), inputs, CoreMonitor())
    assert [x.opened.name for x in found.best_at(8)] == ["a, onnx", "a, torch", "b, onnx"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder and an artifact folder in fp32, unfused."""
    here = tmp_path_factory.mktemp("choice")
    jobs.model_folder(here / "model")
    model = random_model(heads=(4, 4))
    save_artifact(model, here / "result")
    Onnx(fusion="none").emit(model, make_context(model), here / "result")
    return here


def test_a_given_model_is_exported_with_every_fusion(given: Path) -> None:
    found = open_engine(str(given / "model"), Onnx(), 1, "cpu", compiled=False)
    graphs = [found.graph, *(x.graph for x in found.others)]
    assert graphs == ["plain", "fusion=basic", "fusion=all"]
    assert found.not_run == {}
    ids = np.arange(24).reshape(2, 12) % 90 + 5
    some = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    some["token_type_ids"] = np.zeros_like(ids)
    plain, *fused = (x.engine.run(some) for x in (found, *found.others))
    for logits in fused:
        np.testing.assert_allclose(logits, plain, atol=1e-4)
    int8 = open_engine(
        str(given / "model"), Onnx(precision="fp32", fusion="none"), 1, "cpu", compiled=False
    )
    assert (int8.graph, int8.others) == ("", ())


def test_the_first_graph_is_fused_unless_it_is_to_stay_as_it_is(
    given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = str(given / "result" / "model.onnx")
    options = ["--length", "8", "--rounds", "2", "--threads", "1", "--json", "-q"]
    for extra, graphs in (([], {"plain", "fusion=basic", "fusion=all"}), (["--as-is"], {""})):
        assert main([graph, str(given / "result"), *options, *extra]) == 0
        report = json.loads(capsys.readouterr().out)
        assert {x["graph"] for x in report["probes"] if x["name"] == graph} == graphs
        assert {x["graph"] for x in report["probes"] if x["name"] != graph} == {""}
        assert report["best"] == report["entries"]


def test_a_fused_graph_with_other_logits_is_left_out(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(proto: onnx.ModelProto, attention: bool) -> onnx.ModelProto:
        assert not attention, "attention cannot be fused"
        other = onnx.ModelProto()
        other.CopyFrom(proto)
        for x in other.graph.initializer:
            if x.name == "head.out.bias" or "head" in x.name:
                values = onnx.numpy_helper.to_array(x) + 1
                x.CopyFrom(onnx.numpy_helper.from_array(values, x.name))
        return other

    monkeypatch.setattr("prumux.export.benchmark.graphs.fusion_tool.fuse", wrong)
    path = str(given / "result" / "model.onnx")
    found = open_engine(path, None, 1, "cpu", compiled=False, fuse=True)
    assert found.others == ()
    assert "logits differ by up to" in found.not_run["fusion=basic"]
    assert found.not_run["fusion=all"] == "AssertionError attention cannot be fused"


def test_engines_that_are_not_here_are_named(given: Path) -> None:
    kinds = [x for x in KINDS if x != "torch"]
    found, not_run = open_kinds(
        str(given / "result"), "r", kinds, OpenOptions(1, "cpu", fuse=True)
    )
    assert [x.name for x in found] == ["r, onnx"]
    assert found[0].encoder is not None
    assert list(not_run) == ["r, onnx-cuda", "r, onnx-rtx", "r, tensorrt", "r, tensorrt-rtx"]
    with pytest.raises(MissingError, match="TensorRT"):
        open_kinds(str(given / "result"), "r", ["tensorrt"], OpenOptions(1, "cpu", fuse=True))


def test_torch_runs_beside_onnx_runtime(
    given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.compile", lambda module: module)  # takes minutes
    command = [str(given / "model"), str(given / "result"), "--engines", "torch, onnx"]
    more = ["--length", "8", "--batch", "2", "--rounds", "2", "--json", "-q"]
    assert main([*command, *more]) == 0
    report = json.loads(capsys.readouterr().out)
    names = [f"{given / x}, {kind}" for x in ("model", "result") for kind in ("torch", "onnx")]
    assert {x["name"] for x in report["entries"]} == set(names)
    assert report["entries"][0]["name"] in names[:2]
    assert report["entries"][0]["throughput_ratio"] == 1
    graphs = {(x["name"], x["graph"]) for x in report["probes"]}
    assert {(names[0], "eager"), (names[0], "compiled"), (names[1], "fusion=all")} <= graphs


def test_the_exported_graphs_are_kept(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [str(given / "model"), "--target", "onnx", "--keep-graphs", str(tmp_path)]
    assert main([*command, "--length", "8", "--rounds", "1", "--json", "-q"]) == 0
    capsys.readouterr()
    kept = sorted(x.relative_to(tmp_path).as_posix() for x in tmp_path.rglob("*.onnx"))
    assert kept == [f"model/{x}/model.onnx" for x in ("fusion=all", "fusion=basic", "plain")]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--engines", "onyx"], 2, "'onyx' is no kind of engine"),
        (["--engines", "tensorrt"], 5, "TensorRT is not installed"),
        (["--engines", "onnx", "--target", "onnx"], 2, "--engines chooses the engines"),
        (["--keep-graphs", "x"], 2, "write --target onnx, or leave --keep-graphs out"),
        (
            ["--target", "onnx", "--keep-graphs", "{file}/x"],
            2,
            "config.json/x/model cannot be written: Not a directory",
        ),
        (["--engines", "onnx", "--compile"], 2, "--engines chooses the engines"),
    ],
)
def test_what_is_refused(
    given: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    places = {"file": given / "model" / "config.json"}
    given_arguments = [x.format(**places) for x in arguments]
    assert main([str(given / "model"), *given_arguments, "-q"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("prumux-bench: ")
    assert "Traceback" not in said
