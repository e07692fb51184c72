"""Whole runs with the target `tensorrt` on a machine without a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.export.trt.library import FLAVORS, gpu_here
from prumux.optimizer.certificate.kept_answers import FILE
from prumux.optimizer.cli.opt import main
from tests.helpers.jobs import data_folder, model_folder
from tests.helpers.tensorrt_api import rtx_api

pytestmark = pytest.mark.skipif(gpu_here(), reason="a GPU is here")
PASSES = ["--passes", "prune-ffn{ratio=0.3},slice"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that name a tiny model and its data."""
    folder = tmp_path_factory.mktemp("given")
    model = model_folder(folder / "model")
    return [str(model), "--data", str(data_folder(folder / "data", model))]


@pytest.mark.slow
def test_the_search_is_kept_until_a_machine_can_build(
    given: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    rtx_api()
    out = tmp_path / "out"
    command = [*given, *PASSES, "--target", "tensorrt", "--out", str(out)]
    with monkeypatch.context() as patch:
        for flavor in FLAVORS:
            patch.setitem(sys.modules, flavor.module, None)
        assert main(command) == 5
    first, said = capsys.readouterr().err.split("\nprumux-opt: ")
    assert "until the engine is built, the typed graph in ONNX Runtime answers" in first
    assert "TensorRT is not installed" in said
    assert "pip install 'prumux[tensorrt]'" in said
    assert "pip install 'prumux[tensorrt-rtx]' and tensorrt{flavor=rtx}" in said
    assert "holds model.onnx and tensorrt.sh" in said
    assert "the search is finished and kept: repeat the command with --resume" in said
    assert len(said.strip().splitlines()) <= 5
    (left,) = (out / ".resume" / "engines").iterdir()
    assert {x.name for x in left.iterdir()} == {"model.onnx", "tensorrt.sh"}

    with monkeypatch.context() as patch:  # the machine that builds has other processors
        patch.setattr("prumux.optimizer.run.inputs.cpu_threads", lambda: 7)
        assert main([*command, "--resume"]) == 0
    told = capsys.readouterr()
    assert "no GPU here: model.rtx.plan is built but does not run" in told.err
    assert "building " not in told.err
    assert "in place of tensorrt-rtx, whose engine did not run here" in told.out
    report = json.loads((out / "report.json").read_text())
    assert report["engine"]["instead_of"] == "tensorrt-rtx"
    assert {"model.rtx.plan", "model.rtx.plan.json", FILE} <= set(report["files"])
    assert (out / "model.rtx.plan").stat().st_size > 1_000_000
    _served(out, capsys)


def _served(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What knows a plan says that it needs a GPU, or runs the typed graph."""
    assert bench([str(out)]) == 5
    assert "TensorRT for RTX needs an NVIDIA GPU" in capsys.readouterr().err
    assert bench([str(out / "model.rtx.plan")]) == 5
    assert bench(["--verify", str(out), "--device", "cpu", "--rounds", "1"]) == 0
    model = prumux.load(str(out))
    assert model.engine.describe()["runs"] == "the typed graph, rounded to fp16"
    assert len(model.predict(["good film", "bad play"])) == 2
    config = (out / "triton" / "prumux_engine" / "config.pbtxt").read_text()
    assert 'backend: "onnxruntime"' in config


@pytest.mark.slow
def test_texts_are_not_kept_where_they_must_not_be(
    given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    target = ["--target", "onnx{precision=fp32 fusion=none}"]
    assert main([*given, *PASSES, *target, "--out", str(out), "--no-keep-answers"]) == 0
    assert not (out / FILE).exists()
    assert bench(["--verify", str(out)]) == 2
    assert "without --no-keep-answers" in capsys.readouterr().err
