"""Pushing a result to the hub, on a stand-in for the hub's library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

import prumux
from prumux.optimizer.base.errors import MissingError, UsageError
from prumux.optimizer.cli.opt import main
from tests.helpers import jobs


class FakeHub:
    """Takes what would be uploaded."""

    made: list[dict[str, Any]]
    pushed: list[dict[str, Any]]
    refuses: Exception | None

    def __init__(self) -> None:
        self.made, self.pushed, self.refuses = [], [], None

    def __call__(self) -> FakeHub:
        return self

    def create_repo(self, repo: str, **options: Any) -> str:
        if self.refuses:
            raise self.refuses
        self.made.append({"repo": repo, **options})
        return f"https://hub.test/{repo}"

    def upload_folder(self, **options: Any) -> None:
        self.pushed.append(options)


@pytest.fixture(name="hub")
def _hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    found = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", found)
    return found


def result(folder: Path) -> Path:
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps({"schema_version": 1}))
    return folder


def test_a_result_is_pushed_without_the_texts_of_its_data(
    tmp_path: Path, hub: FakeHub
) -> None:
    folder = result(tmp_path / "made")
    assert prumux.push_to_hub(folder, "me/model") == "https://hub.test/me/model"
    assert hub.made == [{"repo": "me/model", "private": True, "exist_ok": True}]
    assert hub.pushed[0]["folder_path"] == folder
    assert "certified_answers.jsonl" in hub.pushed[0]["ignore_patterns"]
    prumux.push_to_hub(folder, "me/model", private=False, answers=True)
    assert hub.made[1]["private"] is False
    assert hub.pushed[1]["ignore_patterns"] == [".resume/**"]


@pytest.mark.parametrize("repo", ["model", "a/b/c", "me/..", "", "me/ bad"])
def test_what_is_no_repository_is_refused(tmp_path: Path, repo: str, hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="is no repository"):
        prumux.push_to_hub(result(tmp_path / "made"), repo)
    assert not hub.made


def test_what_is_no_result_is_refused(tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(UsageError, match="holds no finished result"):
        prumux.push_to_hub(tmp_path, "me/model")
    assert not hub.made


def test_a_hub_that_refuses_loses_nothing(tmp_path: Path, hub: FakeHub) -> None:
    hub.refuses = ConnectionError("no route to host")
    with pytest.raises(MissingError, match="could not be pushed to 'me/model': no route"):
        prumux.push_to_hub(result(tmp_path / "made"), "me/model")


def test_the_command_pushes_what_meets_the_budget(tmp_path: Path, hub: FakeHub) -> None:
    model = jobs.model_folder(tmp_path / "model")
    data = jobs.data_folder(tmp_path / "data", model)
    out = tmp_path / "out"
    line = [str(model), "--data", str(data), "--passes", "prune{sparsity=0.5},slice", "-q"]
    line += ["--target", "onnx{precision=fp32}", "--out", str(out)]
    assert main([*line, "--push-to-hub", "no-owner"]) == 2
    assert not out.exists()
    hub.refuses = ConnectionError("no route to host")
    assert main([*line, "--push-to-hub", "me/model"]) == 5
    hub.refuses = None
    assert main([*line, "--push-to-hub", "me/model", "--resume"]) == 0
    assert [x["repo_id"] for x in hub.pushed] == ["me/model"]
    assert (out / "onnx" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    card = huggingface_hub.ModelCard.load(out / "README.md")
    assert card.data.library_name == "prumux"
