"""Whole searches on a tiny model, without export and timing, and what they leave behind."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.certificate.budget import Budget
from prumux.optimizer.run import choose, plan, request
from prumux.optimizer.run.workspace import open_workspace
from prumux.optimizer.search.bisection import SearchResult
from prumux.optimizer.workers.scheduler import trial_threads
from tests.helpers import jobs


@dataclass(frozen=True)
class Searched:
    """What a search decided, and what it left in its folder."""

    found: SearchResult
    lines: list[dict[str, Any]]
    """trials.jsonl, without seconds."""
    tensors: Mapping[str, bytes]
    """Models and predictions of the store."""

    def decided(self) -> SearchResult:
        """All that was found, without seconds."""
        trials = tuple(replace(x, seconds=0.0) for x in self.found.trials)
        return replace(self.found, trials=trials)

    def same_as(self, other: Searched) -> None:
        """The same decisions, in the same order, on the same bits, where both have them."""
        assert self.decided() == other.decided()
        assert self.lines == other.lines
        both = self.tensors.keys() & other.tensors.keys()
        assert len([x for x in both if x.startswith("model-")]) >= len(self.found.trials)
        assert [x for x in both if self.tensors[x] != other.tensors[x]] == []


def given(folder: Path) -> dict[str, Any]:
    """A model with data, as options of a request."""
    model = jobs.model_folder(folder / "model")
    return {"model": str(model), "data": str(jobs.data_folder(folder / "data", model))}


def searched(options: Mapping[str, Any], out: Path, workers: int | str = 1) -> Searched:
    """Run the search of a request, and nothing else."""
    asked = request.Request(out=out, workers=workers, resume=True, **options)
    todo = plan.plan(asked, Progress())
    workspace = open_workspace(out, todo.facts(), resume=True)
    assert workspace is not None
    try:
        evaluator = todo.evaluator.with_store(workspace.store, workspace.record)
        todo = replace(todo, evaluator=evaluator)
        helpers = choose.useful_workers(todo)
        torch.set_num_threads(trial_threads(evaluator, helpers))
        found, _ = choose.search(todo, time.monotonic(), helpers)
    finally:
        workspace.release()
    assert found is not None
    stored = workspace.store.files()
    tensors = {x.name: x.read_bytes() for x in stored if x.suffix == ".safetensors"}
    return Searched(found, untimed(workspace.trials.read_text().splitlines()), tensors)


def untimed(lines: Iterable[str]) -> list[dict[str, Any]]:
    """Lines of trials.jsonl without seconds."""
    read = [json.loads(line) for line in lines]
    return [{k: x for k, x in line.items() if k != "seconds"} for line in read]


def budget(text: str) -> Budget:
    """A budget of a request."""
    return Budget.parse(text)
