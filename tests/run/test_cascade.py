"""Whole runs with `cascade`: certificate, report, resume, refusals and their exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import prumux
from prumux.export.benchmark.cli import main as bench
from prumux.export.trt.library import RTX, gpu_here
from prumux.optimizer.cli.opt import main
from prumux.optimizer.report.build import HTML_NAME
from prumux.optimizer.run import packaging
from prumux.optimizer.tasks.prediction import Prediction
from prumux.passes.cascade import Cascade
from prumux.passes.reconstruct import Reconstruct
from tests.helpers import jobs
from tests.helpers.checkpoints import config
from tests.helpers.costs import costs_file, linear
from tests.helpers.tensorrt_api import rtx_api

FIRST = "pool-early,prune{sparsity=0.7 of=macs},slice,reconstruct"
SECOND = "pool-early,prune{sparsity=0.2 of=macs},slice,reconstruct"
PIPELINE = f'{FIRST},cascade{{to="{SECOND}" defer=0.4}}'
WIDE = config(
    vocab_size=101,
    max_position_embeddings=40,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
)


@pytest.fixture(scope="module", autouse=True)
def never_slower() -> Iterator[None]:
    """Ship the cascade although a model as small as this is faster alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packaging, "_slower", lambda *speeds: False)
        yield


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    here = tmp_path_factory.mktemp("job")
    model = jobs.model_folder(here / "model")
    return [str(model), "--data", str(jobs.data_folder(here / "data", model))]


@pytest.fixture(scope="module")
def done(job: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("done") / "out"
    assert main([*job, "--budget", "30%", "--passes", PIPELINE, "--out", str(out), "-q"]) == 0
    return out


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def test_the_whole_is_certified_and_both_stages_are_reported(done: Path) -> None:
    report = report_of(done)
    assert report["met"]
    (proof,) = report["proofs"]
    assert proof["pipeline"] == PIPELINE
    assert proof["loss"] == report["scores"]["certify"]["loss"]
    cascade = report["cascade"]
    stages = cascade["stages"]["certify"]
    assert 0.2 < stages["deferred"] < 0.6
    whole = report["scores"]["certify"]["score"]
    assert stages["first"] < whole <= 1
    assert stages["first"] < stages["second"]
    assert sum(x["rows"] for x in cascade["margins"]) == 600
    assert 0 < sum(x["differ"] for x in cascade["margins"]) < 600
    below = sum(x["rows"] for x in cascade["margins"] if x["high"] <= cascade["threshold"])
    assert below <= 600 * stages["deferred"] + 1
    receipt = report["passes"][-1]
    assert receipt["notes"]["deferred"] == pytest.approx(0.4, abs=0.02)
    assert [x["spec"] for x in receipt["notes"]["second"]] == [
        "pool-early",
        "prune{sparsity=0.2 of=macs}",
        "slice",
        "reconstruct",
    ]
    page = (done / HTML_NAME).read_text()
    assert page.count("answered differently by the stages") == len(cascade["margins"])
    assert "first model alone" in page


def test_it_is_loaded_verified_and_never_taken_as_a_given_model(
    done: Path, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    predictor, found = prumux.load(done), jobs.texts(12, 7)
    together = [x.label for x in predictor.predict(found) if isinstance(x, Prediction)]
    alone = [predictor.predict([x])[0] for x in found]
    assert [x.label for x in alone if isinstance(x, Prediction)] == together
    assert len(set(together)) == 2
    assert bench(["--verify", str(done)]) == 0
    assert "equal labels  256 of 256" in capsys.readouterr().out
    args = [str(done), *job[1:], "--budget", "20%", "--out", str(tmp_path / "out"), "-q"]
    assert main(args) == 2
    assert "is a cascade of two models, which no pass takes" in capsys.readouterr().err


def test_a_killed_run_goes_on(
    job: list[str], done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after both stages were built: the second one is not built again."""
    out = tmp_path / "out"
    args = [*job, "--budget", "30%", "--passes", PIPELINE, "--out", str(out), "-q"]
    run, refit, refitted = Cascade.run, Reconstruct.run, list[int]()

    def killed(*given: Any) -> Any:
        found = run(*given)
        if type(given[0]) is Cascade:  # and no sketch of it
            raise KeyboardInterrupt
        return found

    def counted(*given: Any) -> Any:
        refitted.append(1)
        return refit(*given)

    monkeypatch.setattr(Reconstruct, "run", counted)
    monkeypatch.setattr(Cascade, "run", killed)
    assert main(args) == 130
    assert len(refitted) == 2
    monkeypatch.setattr(Cascade, "run", run)
    assert main([*args, "--resume"]) == 0
    assert len(refitted) == 3  # of the first stage only
    same = ("proofs", "scores", "pipeline")
    assert [report_of(out)[x] for x in same] == [report_of(done)[x] for x in same]


@pytest.mark.parametrize(
    "target",
    [
        "onnx{precision=fp32 fusion=none}",
        "onnx{precision=int8 fusion=none}",
        pytest.param("tensorrt{precision=int8 flavor=rtx}", marks=pytest.mark.slow),
    ],
)
def test_precisions_and_mixed_first_stages(target: str, tmp_path: Path) -> None:
    if target.startswith("tensorrt"):
        rtx_api()
    model = jobs.model_folder(tmp_path / "model", WIDE)
    data = jobs.data_folder(tmp_path / "data", model, pairs=True)
    passes = 'pool-early,mux{n=2 at=1},reconstruct,cascade{to="" defer=0.5 max_share=0.75}'
    args = [str(model), "--data", str(data), "--passes", passes, "--out", str(tmp_path / "o")]
    assert main([*args, "--target", target, "-q"]) == 0
    report = report_of(tmp_path / "o")
    assert report["mux"]["slots"]
    assert 0 < report["cascade"]["stages"]["test"]["deferred"] <= 0.8
    assert len(prumux.load(tmp_path / "o").predict([("good", "film")] * 3)) == 3


@pytest.mark.slow
@pytest.mark.skipif(gpu_here(), reason="a GPU is here")
def test_two_engines_of_tensorrt(
    job: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without the library the search is kept, and a machine that has it ends the run."""
    rtx_api()
    out, made = tmp_path / "out", tmp_path / "costs.json"
    target = "tensorrt{precision=fp32 flavor=rtx}"
    costs_file(made, Path(job[0]), {target: linear(0.1, 0.01, 0.1)})
    args = [*job, "--budget", "30%", "--passes", PIPELINE, "--costs", str(made)]
    args += ["--target", target, "--out", str(out)]
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, RTX.module, None)
        assert main(args) == 5
    assert (
        "holds first/model.onnx, second/model.onnx and tensorrt.sh" in capsys.readouterr().err
    )
    assert main([*args, "--resume", "-q"]) == 0
    found = report_of(out)
    assert found["engine"]["stages"] == "two engines, the host defers rows"
    assert {f"{x}/{RTX.plan}" for x in ("first", "second")} < set(found["files"])
    assert 0.2 < found["cascade"]["stages"]["certify"]["deferred"] < 0.6
    told = json.loads((out / "cascade.json").read_text())["second"]
    assert told["threshold"] == found["cascade"]["threshold"]
    assert "model.onnx" not in (out / "README.md").read_text()
    assert bench(["--verify", str(out), "--device", "cpu", "--rounds", "1"]) == 0
    assert "equal labels  256 of 256" in capsys.readouterr().out
    assert bench(["--verify", str(out)]) == 5
    assert bench([str(out), "--engines", "onnx", "--batch", "2", "--length", "9"]) == 0
    graph = out / "second" / "model.onnx"
    graph.write_bytes(graph.read_bytes() + b" ")
    assert bench(["--verify", str(out), "--device", "cpu"]) == 4
    assert "not the certified files: second/model.onnx" in capsys.readouterr().err


def test_a_space_of_cascades_is_searched(job: list[str], tmp_path: Path) -> None:
    space = f'{FIRST},cascade{{to="" defer=0.1|0.8}}'
    args = [*job, "--budget", "30%", "--passes", space, "--out", str(tmp_path / "o"), "-q"]
    assert main(args) == 0
    trials = {x["pipeline"]: x for x in report_of(tmp_path / "o")["trials"]}
    few, many = (f"{FIRST},cascade{{defer={x}}}" for x in (0.1, 0.8))
    assert {*trials} <= {few, many}
    assert trials[many]["macs"] > trials[few]["macs"]
    assert trials[many]["loss"] <= trials[few]["loss"]


REFUSED = {
    "not last": ("cascade,slice", "onnx", "put 'cascade' last"),
    "bad second": ('cascade{to="slic"}', "onnx", "did you mean 'slice'"),
    "uncut second": ('cascade{to="prune{sparsity=0.5}"}', "onnx", "add slice"),
    "mixed second": ('cascade{to="mux{n=2}"}', "onnx", "takes rows one by one"),
    "bad share": ("cascade{defer=-1}", "onnx", "defer must be in [0, 1], not -1.0"),
    "bad most": ("cascade{max_share=2}", "onnx", "max_share must be above 0"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_come_before_any_work(
    name: str, job: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    passes, target, said = REFUSED[name]
    args = [*job, "--budget", "30%", "--passes", passes, "--target", target, "-q"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"id2label": {"0": "s"}, "problem_type": "regression"}, "regression"),
        (
            {
                "architectures": ["BertForTokenClassification"],
                "id2label": {"0": "O", "1": "B-X", "2": "I-X"},
            },
            "token-classification",
        ),
    ],
)
def test_tasks_that_cannot_cascade(
    changes: dict[str, Any], name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = jobs.model_folder(tmp_path / "model", jobs.CONFIG | changes)
    data = jobs.data_folder(tmp_path / "data", model)
    args = [str(model), "--data", str(data), "--passes", "cascade", "-q"]
    assert main([*args, "--out", str(tmp_path / "out")]) == 2
    assert f"this is a {name} model: leave 'cascade' out" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
