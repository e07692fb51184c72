"""`prumux-bench` on tiny models: what it takes, what it says, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from prumux.export.benchmark.cli import main
from prumux.export.benchmark.run import measure
from prumux.export.onnx import Onnx
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.source import load_model
from tests.helpers import jobs
from tests.helpers.datafiles import write
from tests.helpers.factory import make_context, multiplexed


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder, its data, and an artifact folder that mixes two rows."""
    here = tmp_path_factory.mktemp("bench")
    model = jobs.model_folder(here / "model")
    jobs.data_folder(here / "data", model)
    mixed = multiplexed(load_model(str(model)), n=2, at=1)
    save_artifact(mixed, here / "mixed")
    Onnx(fusion="none").emit(mixed, make_context(mixed), here / "mixed")
    return here


def bench(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main([*arguments, "--json", "-q", "--rounds", "2", "--threads", "1"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_folders_and_graphs_side_by_side(
    given: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(given / "model"), str(given / "mixed" / "model.onnx"), str(given / "mixed")]
    found = bench(capsys, *names, "--batch", "1,4", "--length", "12")
    assert [x["name"] for x in found["entries"]] == names * 2
    assert [x["batch"] for x in found["entries"]] == [1] * 3 + [4] * 3
    engines = [x["engine"] for x in found["engines"].values()]
    assert engines == ["torch eager", "onnxruntime", "onnxruntime"]
    for x in found["entries"]:
        assert x["rows_per_second_low"] <= x["rows_per_second"] <= x["rows_per_second_high"]
        assert 0 < x["batch_ms_p50"] <= x["batch_ms_p90"] <= x["batch_ms_p99"]
    assert found["entries"][0]["throughput_ratio"] == 1.0
    last = [x for x in found["entries"] if x["batch"] == found["at_batch"]][-1]
    assert found["throughput_ratio"] == last["throughput_ratio"]
    assert set(found["power"]) == set(names)
    assert all((x["mean_watts"] is None) == (x["rows_per_second_per_watt"] is None)
               for x in found["entries"])  # fmt: skip
    assert found["file_bytes"][names[1]] == (given / "mixed" / "model.onnx").stat().st_size


def test_on_a_target_with_the_datas_lengths(
    given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "plot.png"
    names = [str(given / "model"), str(given / "mixed")]
    data = ["--data", str(given / "data"), "--plot", str(plot)]
    found = bench(capsys, *names, "--target", "onnx", *data)
    assert {x["engine"] for x in found["engines"].values()} == {"onnxruntime"}
    assert plot.stat().st_size > 1000


def test_the_same_again(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [str(given / "mixed"), str(given / "mixed" / "model.onnx")]
    found = bench(capsys, names[0], *names, names[0], "--length", "8", "--batch", "2")
    told = [names[0], f"{names[0]} (2)", names[1], f"{names[0]} (3)"]
    assert [x["name"] for x in found["entries"]] == told
    for by_name in ("engines", "file_bytes", "power"):
        assert list(found[by_name]) == told


@pytest.mark.parametrize("before", [None, b"a picture"])
def test_a_picture_that_comes_to_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: bytes | None
) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "plot.png"
    if before:
        path.write_bytes(before)
    assert main(["nothing.onnx", "--plot", str(path), "-q"]) == 2
    assert "nothing.onnx" in capsys.readouterr().err
    assert (path.read_bytes() if path.exists() else None) == before


def test_what_was_measured_is_shown_though_it_is_interrupted(
    given: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []

    def once(opened: Any, data: Any, batch: int, *rest: Any) -> Any:
        sizes.append(batch)
        if len(sizes) > 1:
            raise KeyboardInterrupt
        return measure(opened, data, batch, *rest)

    monkeypatch.setattr("prumux.export.benchmark.cli.measure", once)
    name = str(given / "mixed")
    assert main([name, "--length", "8", "--batch", "2,4,6", "--rounds", "2", "--json"]) == 130
    said = capsys.readouterr()
    assert [x["batch"] for x in json.loads(said.out)["entries"]] == [2]
    assert "interrupted" in said.err
    assert sizes == [2, 4]


def test_the_table(given: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(given / "model")
    assert main([name, "--length", "8", "--rounds", "2", "-q"]) == 0
    said = capsys.readouterr().out
    assert "rows/s" in said
    assert "1.00x  [1.00, 1.00]" in said
    assert "length 8; wall clock" in said
    assert "power: " in said


@pytest.mark.parametrize("odd", [np.nan, np.inf])
def test_answers_that_are_no_numbers(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], odd: float
) -> None:
    proto = onnx.load(given / "mixed" / "model.onnx")
    for x in proto.graph.initializer:
        if x.data_type == onnx.TensorProto.FLOAT:
            values = np.full_like(onnx.numpy_helper.to_array(x), odd)
            x.CopyFrom(onnx.numpy_helper.from_array(values, x.name))
    bad = tmp_path / "bad.onnx"
    onnx.save(proto, bad)
    assert main([str(given / "mixed"), str(bad), "--length", "8", "--batch", "4", "-q"]) == 4
    said = capsys.readouterr().err
    assert f"8 of 8 logits that '{bad}' gives are nan or infinite, on inputs of 4x8" in said
    assert "--target 'onnx{precision=fp32}'" in said


def test_texts_are_all_that_is_needed(
    given: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one = write(tmp_path / "one.jsonl", text=["good film", "bad"], label=["?", 7])
    found = bench(capsys, str(given / "model"), "--data", str(one))
    assert found["length"] == "data"
    other = write(tmp_path / "other.jsonl", review=["good film"])
    assert main([str(given / "model"), "--data", str(other), "-q"]) == 2
    said = capsys.readouterr().err
    assert "no text column; the columns are: review\nkeep one, named 'text'" in said
    assert "--columns" not in said


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["{model}", "--length", "data"], 2, "--length data needs texts: add --data DIR"),
        (
            ["{model}", "--length", "many"],
            2,
            "--length: 'many' is not a whole number above 0",
        ),
        (["{model}", "--length", "16", "--data", "{data}"], 2, "write --length data for the"),
        (["{model}", "--batch", "0"], 2, "'0' is not a whole number above 0"),
        (
            ["{model}", "--batch", "99999999999"],
            2,
            "is over the limit of 999999999",
        ),
        (["{model}", "--rounds", "10000000000"], 2, "10000000000 is over the limit of 99999"),
        (["{model}", "--rounds", "1e9"], 2, "'1e9' is not a whole number above 0"),
        (
            ["{graph}", "--length", "data", "--data", "{data}"],
            2,
            "needs a tokenizer, and none",
        ),
        (["{model}", "--threads", "100000"], 2, "--threads: 100000 is over "),
        (["{model}", "--length", "41"], 2, "--length 41 is over the 40 positions of"),
        (["x.plan"], 5, "TensorRT is not installed"),
        (["{model}", "--plot", "x.numbers"], 2, "name it x.png"),
        (["nothing", "--plot", "no/where.png"], 2, "no/where.png cannot be written: No such"),
        (["nothing", "--plot", "{file}/x.png"], 2, "x.png cannot be written: Not a directory"),
        (
            ["nothing", "--target", "tensorrt{{flavor=tensorrt}}"],
            5,
            "TensorRT is not installed",
        ),
        (["{data}/train.jsonl"], 2, "train.jsonl"),
        (["nowhere.onnx"], 2, "nowhere.onnx"),
        (["{model}", "--target", "onnyx"], 2, "onnyx"),
        (["{model}", "--target", "onnx{{precision=bf16}}"], 5, "no bf16 kernels for CPUs"),
        ([], 2, "the following arguments are required: A\nsee: prumux-bench --help"),
    ],
)
def test_what_is_refused(
    given: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    places = {
        "model": given / "model",
        "data": given / "data",
        "graph": given / "mixed" / "model.onnx",
        "file": given / "mixed" / "config.json",
    }
    assert main([x.format(**places) for x in arguments] + ["-q"]) == code
    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("prumux-bench: ")
    assert "Traceback" not in said
    assert len(said.splitlines()) <= 5
