"""`prumux-bench --measure-costs` writes what `prumux-opt --costs` reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from prumux.export.benchmark.cli import main
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.timing import cost_table
from prumux.optimizer.timing.cost_file import read_costs
from tests.helpers import jobs
from tests.helpers.costs import linear

CLOCK = linear(1.0, 0.01)
QUICK = ["--batch", "4", "--length", "8", "-q"]


@pytest.fixture
def sizes(tmp_path: Path) -> Path:
    """A folder with `config.json` and nothing else."""
    folder = tmp_path / "sizes"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(jobs.CONFIG), encoding="utf-8")
    return folder


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times by sizes; the targets that were timed."""
    timed = list[str]()

    def time_ms(encoders: Sequence[Encoder], ctx: Context, rounds: int) -> list[float]:
        assert ctx.target is not None
        timed.append(f"{ctx.target.timed_as} {encoders[-1].slots} {rounds}")
        assert ctx.workload[0].input_ids.shape == (4, 8)
        return [CLOCK(x) for x in encoders]

    monkeypatch.setattr(cost_table, "time_ms", time_ms)
    return timed


def test_sizes_are_enough_of_a_model(sizes: Path, clock: list[str]) -> None:
    file = sizes.parent / "costs.json"
    assert main(["--measure-costs", str(file), str(sizes), *QUICK, "--rounds", "2"]) == 0
    costs = read_costs(file)
    # 24 hidden dimensions are too few for int8.
    assert clock == [f"onnx{{precision=fp32}} {n} 2" for n in (1, 2, 5, 10)]
    assert set(costs.on("onnx{precision=fp32}").mixed) == {2, 5, 10}
    found = costs.estimate(costs.encoder, costs.encoder, *["onnx{precision=fp32}"] * 2)
    assert found.ms == pytest.approx(CLOCK(costs.encoder))
    values = json.loads(file.read_text(encoding="utf-8"))
    assert values["command"].startswith("prumux-bench --measure-costs")
    assert {"commit", "date", "versions"} <= values.keys()
    assert values["machine"]["threads"].isdigit()
    assert values["targets"]["onnx{precision=fp32}"]["engine"]["engine"] == "onnxruntime"


def test_one_target_at_the_rows_that_are_asked_for(
    sizes: Path, clock: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file, target = str(sizes.parent / "costs.json"), "onnx{precision=int8}"
    args = ["--measure-costs", file, str(sizes), *QUICK, "--target", target, "--mix", "3"]
    assert main(args) == 0
    assert set(read_costs(Path(file)).targets) == {"onnx{precision=fp32}", target}
    assert [x.split(" ")[1] for x in clock] == ["1", "3", "1", "3"]
    shown = capsys.readouterr().out
    assert f"--target '{target}' --costs costs.json" in shown


def test_real_engines_are_timed(sizes: Path) -> None:
    """Times of a tiny model are noise on a busy machine, so only their signs are checked."""
    file = sizes.parent / "costs.json"
    code = main(
        ["--measure-costs", str(file), str(sizes), *QUICK, "--rounds", "1", "--mix", "none"]
    )
    assert code in (0, 4)
    if code == 0:
        found = read_costs(file).on("onnx{precision=fp32}")
        assert found.single.dense_ms > 0
        assert not found.mixed
    else:
        assert not file.exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        ([], 2, "takes one model, 0 given"),
        (["A", "B"], 2, "takes one model, 2 given"),
        (["SIZES", "--batch", "1,8"], 2, "is for one batch size, 2 given"),
        (["SIZES", "--length", "500"], 2, "--length 500 is over the 40 positions"),
        (
            ["SIZES", "--data", "D", "--length", "data"],
            2,
            "leave --data, --verify and --compile out",
        ),
        (["SIZES", "--mix", "1"], 2, "no list of rows from 2 to 100"),
        (["SIZES", "--mix", "2,x"], 2, "no list of rows from 2 to 100"),
        (["nowhere/at/all/x"], 2, "no file or folder 'nowhere/at/all/x'"),
        (["SIZES", "--device", "cuda"], 5, "no CUDA device"),
        (["SIZES", "--target", "onnx{device=cuda}"], 5, "finds no GPU"),
        (["SIZES", "--target", "onx"], 2, "onx"),
    ],
)
def test_a_wrong_request_is_refused(
    sizes: Path, capsys: pytest.CaptureFixture[str], args: list[str], code: int, said: str
) -> None:
    given = [str(sizes) if x == "SIZES" else x for x in args]
    file = sizes.parent / "costs.json"
    quick = [] if "--batch" in given or "--length" in given else ["--length", "8"]
    assert main(["--measure-costs", str(file), *given, *quick, "-q"]) == code
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error
    assert not file.exists()


def test_the_file_must_be_one_that_can_be_written(
    sizes: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (sizes, sizes / "no" / "costs.json"):
        assert main(["--measure-costs", str(path), str(sizes), *QUICK]) == 2
        assert "--measure-costs" in capsys.readouterr().err
    assert main([str(sizes), "--mix", "2"]) == 2
    assert "--mix is for --measure-costs" in capsys.readouterr().err


def test_a_compressed_model_is_refused(
    sizes: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from prumux.optimizer.model.artifact import save_artifact
    from tests.helpers.factory import multiplexed, random_model

    save_artifact(multiplexed(random_model()), tmp_path / "mixed")
    file = str(tmp_path / "costs.json")
    assert main(["--measure-costs", file, str(tmp_path / "mixed"), *QUICK]) == 2
    assert "is compressed already" in capsys.readouterr().err
