"""The output folder survives kills and is never taken from anybody else."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest

from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.run.workspace import Workspace, check_out, open_workspace


def opened(out: Path) -> Workspace:
    workspace = open_workspace(out, {}, resume=False)
    assert workspace is not None
    return workspace


def leave(workspace: Workspace | None) -> None:
    assert workspace is not None
    workspace.release()


def finish(out: Path, **report: object) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps({"schema_version": 1, **report}))


def test_a_torn_line_is_dropped_and_no_trial_is_written_twice(tmp_path: Path) -> None:
    workspace = opened(tmp_path / "out")
    workspace.record({"pipeline": "a", "loss": 1})
    path = workspace.trials
    path.write_text(path.read_text() + '{"pipeline": "b", "lo')
    workspace.record({"pipeline": "b", "loss": 2})
    workspace.record({"pipeline": "a", "loss": 3})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found == [{"pipeline": "a", "loss": 1}, {"pipeline": "b", "loss": 2}]


def test_resume_needs_the_same_facts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leave(open_workspace(out, {"seed": 0, "budget": "2%"}, resume=False))
    with pytest.raises(UsageError, match=r"another seed\nseed: then 0, now 1"):
        open_workspace(out, {"seed": 1, "budget": "2%"}, resume=True)
    leave(open_workspace(out, {"seed": 0, "budget": "2%"}, resume=True))


def test_resume_names_the_versions_of_prumux(tmp_path: Path) -> None:
    def facts(version: str) -> dict[str, object]:
        return {"seed": version, "versions": {"prumux": version, "torch": version}}

    out = tmp_path / "out"
    leave(open_workspace(out, facts("0.1.0"), resume=False))
    said = r"the interrupted run in .* was begun by prumux 0\.1\.0, this is prumux 0\.2\.0"
    with pytest.raises(UsageError, match=said):
        open_workspace(out, facts("0.2.0"), resume=True)
    finish(tmp_path / "done", facts=facts("0.1.0"))
    with pytest.raises(UsageError, match=r"go on with prumux 0\.1\.0, or .* --force"):
        open_workspace(tmp_path / "done", facts("0.2.0"), resume=True)


def test_interrupted_run_asks_what_to_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    leave(opened(out))
    with pytest.raises(
        UsageError, match="an interrupted run\nuse --resume to go on, or --force"
    ):
        check_out(out, [], resume=False, force=False)
    check_out(out, [], resume=True, force=False)
    check_out(out, [], resume=False, force=True)


def test_a_finished_result_is_resumed_only_by_its_own_command(tmp_path: Path) -> None:
    finish(tmp_path, facts={"seed": 0})
    assert open_workspace(tmp_path, {"seed": 0}, resume=True) is None
    with pytest.raises(UsageError, match=r"the finished run in .* had another seed"):
        open_workspace(tmp_path, {"seed": 1}, resume=True)
    leave(open_workspace(tmp_path, {"seed": 1}, resume=True, force=True))


@pytest.mark.parametrize("name", ["model.pt", "train.jsonl"])
def test_an_input_is_never_inside_the_output(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="holds the input"):
        check_out(tmp_path, [str(tmp_path / name)], resume=False, force=True)
    with pytest.raises(UsageError, match="holds the input"):
        check_out(tmp_path, [None, str(tmp_path)], resume=False, force=True)


def test_publish_replaces_an_earlier_result_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    finish(out, files=["report.json", "vocab.txt", "../outside"])
    for path in (out / "vocab.txt", out / "notes.txt", tmp_path / "outside"):
        path.write_text("old")
    workspace = opened(out)
    workspace.staging.mkdir(parents=True)
    (workspace.staging / "report.json").write_text("new")
    workspace.record({"pipeline": "a"})
    workspace.publish()
    names = {path.name for path in out.iterdir()}
    assert names == {"report.json", "notes.txt", "trials.jsonl"}
    assert (out / "report.json").read_text() == "new"
    assert (tmp_path / "outside").exists()


def test_killed_while_the_steps_go_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    workspace = opened(out)
    workspace.store.json("trial-1", dict)
    finish(workspace.staging, facts={})

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            workspace.publish()
    workspace.release()
    assert (out / ".resume" / "trial-1.json").exists()
    check_out(out, [], resume=True, force=False)
    assert open_workspace(out, {}, resume=True) is None, "nothing is to be done again"
    assert not (out / ".resume").exists()


def test_publish_replaces_folders_file_by_file(tmp_path: Path) -> None:
    out = tmp_path / "out"
    ours = ["triton/a/1/model.onnx", "triton/b/config.pbtxt", "triton/README.md"]
    elsewhere = tmp_path / "elsewhere"
    finish(out, files=[*ours, "triton/../../elsewhere", str(elsewhere), "link/mine"])
    for name in (*ours, "triton/b/mine"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("old")
    (out / "link").symlink_to(elsewhere)
    workspace = opened(out)
    (workspace.staging / "triton" / "c").mkdir(parents=True)
    (workspace.staging / "triton" / "c" / "config.pbtxt").write_text("new")
    (workspace.staging / "triton" / "README.md").write_text("new")
    workspace.record({"pipeline": "a"})
    workspace.publish()
    left = {str(x.relative_to(out / "triton")) for x in (out / "triton").rglob("*")}
    assert left == {"b", "b/mine", "c", "c/config.pbtxt", "README.md"}
    assert (out / "triton" / "README.md").read_text() == "new"
    assert (elsewhere / "mine").exists()


def test_a_failing_run_leaves_an_earlier_result_alone(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "trials.jsonl").write_text("old")
    opened(tmp_path).record({"pipeline": "a"})
    assert (tmp_path / "trials.jsonl").read_text() == "old"


def test_two_runs_never_share_a_folder(tmp_path: Path) -> None:
    first = opened(tmp_path)
    with pytest.raises(UsageError, match="another prumux-opt is at work"):
        opened(tmp_path)
    first.release()
    opened(tmp_path).release()


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path: Path) -> None:
    for name, to in (("gone", "nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(to)
        with pytest.raises(UsageError, match=f"is a link to '{to}', which does not exist"):
            check_out(tmp_path / name, [], resume=False, force=False)


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    found = open_workspace(tmp_path / "out", {"a": 1}, resume=False)
    assert found is not None
    assert found.lock is None
    found.release()


def test_after_the_search_another_machine_may_build(tmp_path: Path) -> None:
    here, there = ({"seed": 0, "threads": n, "device": d} for n, d in ((2, "cpu"), (9, "gpu")))
    first = open_workspace(tmp_path, here, resume=False)
    leave(first)
    with pytest.raises(UsageError, match="had another device, threads"):
        open_workspace(tmp_path, there, resume=True)
    assert first is not None
    first.mark_searched()
    leave(open_workspace(tmp_path, there, resume=True))
    with pytest.raises(UsageError, match="had another seed"):
        open_workspace(tmp_path, {**there, "seed": 1}, resume=True)
