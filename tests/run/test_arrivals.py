"""`--arrivals mixed`: rows are timed, scored and verified in the order of the data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from prumux.export.benchmark.cli import main as bench
from prumux.export.runtime.fusion_choice import padding
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.predict import mixed_together, predict, torch_run, workload
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded, collate
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.partner_sensitivity import partner_sensitivity
from prumux.optimizer.timing.interleave import Timing
from tests.helpers import jobs
from tests.helpers.factory import multiplexed, random_model

PASSES = "prune{sparsity=0.4 of=macs},slice"


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    here = tmp_path_factory.mktemp("arrivals")
    jobs.data_folder(here / "data", jobs.model_folder(here / "model"))
    return here


@pytest.fixture
def ragged_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The choice of the layout does not depend on the noise of this machine."""

    def time_graphs(graphs: Any, *_: Any) -> Any:
        return {x.fusion: Timing((5.0 if x.fusion == "ragged" else 9.0,) * 7) for x in graphs}

    for module in ("prumux.export.onnx", "prumux.export.runtime.fusion_choice"):
        monkeypatch.setattr(f"{module}.time_graphs", time_graphs)


def optimised(job: Path, out: Path, *more: str) -> int:
    given = [str(job / "model"), "--data", str(job / "data"), "--out", str(out), "-q"]
    return main([*given, *more])


def report_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


@pytest.mark.usefixtures("ragged_wins")
def test_the_report_shows_the_dense_model_padded_and_ragged(
    job: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert optimised(job, out, "--passes", PASSES, "--arrivals", "mixed") == 0
    report = report_of(out)
    assert report["serving"]["arrivals"] == "mixed"
    assert report["target"] == "onnx{precision=fp32 ragged=on}"
    assert report["export"]["dense"]["layout"] == "padded"
    assert report["export"]["optimised"]["layout"] == "ragged"
    assert report["engine"]["layout"] == "ragged"
    beside = [(x["pipeline"], x["target"]) for x in report["beside"]]
    assert beside == [("", "onnx{precision=fp32 ragged=on}")]
    assert report["facts"]["arrivals"] == "mixed"
    said = capsys.readouterr().out
    assert "tokens, unsorted)" in said
    assert "also timed dense on onnx{precision=fp32 ragged=on}" in said
    assert "in the order in which rows arrive" in (out / "report.html").read_text()
    session = onnxruntime.InferenceSession(
        out / "model.onnx", providers=["CPUExecutionProvider"]
    )
    meta = session.get_modelmeta().custom_metadata_map
    assert meta["prumux.layout"] == "ragged"
    assert bench(["--verify", str(out), "-q", "--rounds", "1", "--threads", "1"]) == 0


@pytest.mark.usefixtures("ragged_wins")
def test_int8_is_certified_in_the_layout_and_order_that_is_shipped(
    job: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    target = ("--target", "onnx{precision=int8}")
    assert optimised(job, out, "--passes", PASSES, "--arrivals", "mixed", *target) == 0
    report = report_of(out)
    assert "ragged=on" in report["target"]
    assert report["engine"]["precision"] == "int8"
    targets = [x["target"] for x in report["beside"] if not x["pipeline"]]
    assert targets[0] == "onnx{precision=fp32 ragged=on}"
    first = json.loads((out / "certified_answers.jsonl").read_text().splitlines()[0])
    assert first["arrivals"] == "mixed"
    assert bench(["--verify", str(out), "-q", "--rounds", "1", "--threads", "1"]) == 0


def test_a_run_goes_on_with_its_own_arrivals_only(
    job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    out = tmp_path / "out"
    mixed = ("--passes", PASSES, "--arrivals", "mixed")
    timed: list[list[str]] = []

    def time_graphs(graphs: Any, *_: Any) -> Any:
        timed.append([x.fusion for x in graphs])
        return {x.fusion: Timing((5.0 if x.fusion == "ragged" else 9.0,) * 7) for x in graphs}

    for module in ("prumux.export.onnx", "prumux.export.runtime.fusion_choice"):
        monkeypatch.setattr(f"{module}.time_graphs", time_graphs)
    real = "prumux.optimizer.run.run.package"
    with monkeypatch.context() as patch:

        def killed(*_: Any) -> Any:
            raise KeyboardInterrupt

        patch.setattr(real, killed)
        assert optimised(job, out, *mixed) == 130
    assert timed == [["none", "basic", "all", "ragged"]]
    assert optimised(job, out, "--passes", PASSES, "--resume") == 2
    assert "arrivals" in capsys.readouterr().err
    timed.clear()
    assert optimised(job, out, *mixed, "--resume") == 0
    assert timed == [["none", "basic", "all"]], "the layout is decided once"
    assert report_of(out)["target"].endswith("ragged=on}")


def test_sorted_stays_the_default_and_says_nothing_new(job: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert optimised(job, out, "--passes", PASSES) == 0
    report = report_of(out)
    assert report["serving"]["arrivals"] == "sorted"
    assert (report["target"], report["beside"]) == ("onnx{precision=fp32}", [])
    assert "arrivals" not in report["facts"]
    assert "layout" not in report["engine"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--arrivals", "mixed", "--length", "9"), "leave one of them out"),
        (("--arrivals", "shuffled"), "choose from"),
        (("--target", "onnx{ragged=on fusion=basic}"), "ragged=auto keeps the faster one"),
    ],
)
def test_what_does_not_go_together_is_refused(
    job: Path, tmp_path: Path, more: tuple[str, ...], message: str, capsys: Any
) -> None:
    assert optimised(job, tmp_path / "out", "--passes", "pool-early", *more) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_request_refuses_other_words() -> None:
    with pytest.raises(UsageError, match="arrivals is 'shuffled', it must be one of sorted"):
        Request("model", passes="slice", arrivals="shuffled")  # type: ignore[arg-type]


def test_bench_shows_exported_folders_in_both_layouts(job: Path, capsys: Any) -> None:
    given = [str(job / "model"), "--target", "onnx{fusion=none}", "--data", str(job / "data")]
    quick = ["--rounds", "1", "--threads", "1", "--json", "-q", "--batch", "8"]
    assert bench([*given, *quick, "--arrivals", "mixed"]) == 0
    found = json.loads(capsys.readouterr().out)
    name = str(job / "model")
    assert [x["name"] for x in found["entries"]] == [name, f"{name} (ragged)"]
    assert found["engines"][f"{name} (ragged)"]["layout"] == "ragged"
    assert found["arrivals"] == "mixed"
    assert bench([*given, *quick]) == 0
    found = json.loads(capsys.readouterr().out)
    assert ([x["name"] for x in found["entries"]], found["arrivals"]) == ([name], "sorted")
    assert bench([*given[:3], *quick, "--arrivals", "mixed"]) == 2
    assert "add --data DIR, and leave --length out" in capsys.readouterr().err


def uneven_rows(count: int) -> Encoded:
    """Rows of random lengths in random order."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 30, count)
    ids = Ragged.of(rng.integers(4, 99, n).tolist() for n in lengths)
    return Encoded(ids, None, None, 0)


def test_partners_are_any_rows_where_rows_come_unsorted() -> None:
    model, rows = multiplexed(random_model("distilbert"), 3), uneven_rows(30)
    labels = np.zeros(30, np.int64)
    found = partner_sensitivity(model, rows, labels, "accuracy", draws=1, by_length=False)
    order = np.random.default_rng(0).permutation(30)
    run = torch_run(model)
    answers = [
        run(collate(rows, order[i : i + 3]).inputs()).argmax(-1) for i in range(0, 30, 3)
    ]
    assert found.mean == pytest.approx(float((np.concatenate(answers) == 0).mean()))
    slots = np.stack(answers) == 0
    assert found.slots == pytest.approx(tuple(slots.mean(0)))


def test_mixed_batches_are_neighbours_in_the_datas_order() -> None:
    model, rows = random_model("distilbert"), uneven_rows(100)
    mixed, by_length = workload(rows, 8, None, "mixed"), workload(rows, 8, None)
    assert [x.rows.tolist() for x in mixed] == [
        list(range(at, at + 8)) for at in (0, 30, 61, 92)
    ]
    assert padding(mixed) > 1.4
    assert padding(by_length) < 1.1
    few = workload(rows.take(range(5)), 8, None, "mixed")
    assert [len(x.rows) for x in few] == [5] * 4
    together = mixed_together(rows, 2, 0, by_length=False)
    assert together is not None
    assert together.tolist() == [i // 2 for i in range(100)]
    two = multiplexed(model, 2)
    here: Any = predict(torch_run(two), rows, two.task, slots=2, seed=0, by_length=False)
    pair: Any = predict(
        torch_run(two), rows.take([40, 41]), two.task, slots=2, seed=0, by_length=False
    )
    assert here[40:42].tolist() == pair.tolist()
