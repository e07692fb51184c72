"""The output folder survives kills and is never taken from anybody else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prumux.optimizer.errors import UsageError
from prumux.optimizer.workspace import check_out, open_workspace


def test_a_torn_line_is_dropped_and_no_trial_is_written_twice(tmp_path: Path) -> None:
    workspace = open_workspace(tmp_path / "out", {}, resume=False)
    workspace.record({"pipeline": "a", "loss": 1})
    path = tmp_path / "out" / "trials.jsonl"
    path.write_text(path.read_text() + '{"pipeline": "b", "lo')
    workspace.record({"pipeline": "b", "loss": 2})
    workspace.record({"pipeline": "a", "loss": 3})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [{"pipeline": "a", "loss": 1}, {"pipeline": "b", "loss": 2}]


def test_resume_needs_the_same_facts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_workspace(out, {"seed": 0, "budget": "2%"}, resume=False)
    with pytest.raises(UsageError, match=r"another seed\nseed: then 0, now 1"):
        open_workspace(out, {"seed": 1, "budget": "2%"}, resume=True)
    open_workspace(out, {"seed": 0, "budget": "2%"}, resume=True)


def test_interrupted_run_asks_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    open_workspace(out, {}, resume=False)
    with pytest.raises(
        UsageError, match="an interrupted run\nuse --resume to go on, or --force"
    ):
        check_out(out, "model", resume=False, force=False)
    check_out(out, "model", resume=True, force=False)
    check_out(out, "model", resume=False, force=True)


def test_the_model_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is the model itself"):
        check_out(tmp_path, str(tmp_path), resume=False, force=True)


def test_publish_replaces_an_earlier_result(tmp_path: Path) -> None:
    out = tmp_path / "out"
    workspace = open_workspace(out, {}, resume=False)
    (out / "vocab.txt").write_text("old")
    (out / "report.json").write_text("old")
    workspace.staging.mkdir(parents=True)
    (workspace.staging / "report.json").write_text("new")
    workspace.publish()
    assert [path.name for path in out.iterdir()] == ["report.json"]
    assert (out / "report.json").read_text() == "new"
