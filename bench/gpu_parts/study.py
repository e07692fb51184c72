"""Part d: PruMUX's study (https://arxiv.org/abs/2305.14706).

Each cell is a model that is pruned to a sparsity, trained, multiplexed for n rows, and trained
again. Accuracy is measured on rows that no choice used. Throughput is measured for
the trained model's sizes at one batch size and length, in turn with the given model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from prumux.optimizer.base.progress import Progress
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.predict import workload
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run.inputs import open_evaluator
from prumux.optimizer.run.request import Request
from prumux.optimizer.search.evaluator import Evaluator, no_record
from prumux.optimizer.timing.calibration import time_ms

from .commands import here
from .work import Facts, Work, say

SPARSITIES = (0.6, 0.8, 0.9, 0.95)
MIXED = (1, 2, 5, 10)
LEVELS = (0.80, 0.78, 0.76, 0.74)
"""Accuracies at which the paper compares models on MNLI.

For another task, each level is as far below the given model's accuracy as on MNLI, where the
given model has 0.84."""
MNLI_DENSE = 0.84
ROUNDS = 3


@dataclass(frozen=True)
class StudyTask:
    """A fine-tuned model and its data."""

    name: str
    model: str
    data: str


@dataclass(frozen=True)
class Study:
    """The grid of models that part d trains."""

    device: str
    tasks: tuple[StudyTask, ...]
    seeds: int
    minutes: float
    """Minutes of each of the two trainings of a cell."""
    batch: int
    length: int
    sparsities: tuple[float, ...] = SPARSITIES
    mixed: tuple[int, ...] = MIXED

    def cells(self) -> Iterator[tuple[int, StudyTask, float, tuple[int, ...]]]:
        """Rows of cells, ordered by seed, then sparsity, then task."""
        for seed in range(self.seeds):
            for sparsity in self.sparsities:
                for task in self.tasks:
                    yield seed, task, sparsity, self.mixed

    def run(self, work: Work) -> None:
        """Train cells until no time is left for another cell."""
        targets = here(self.device)
        target = next(iter(targets.values()), "onnx")
        slowest = 60 * self.minutes
        for seed, task, sparsity, mixed in self.cells():
            names = {n: cell_name(task, sparsity, n, seed) for n in mixed}
            if all(work.done(x) for x in names.values()):
                continue
            with TemporaryDirectory(prefix="prumux-study-") as folder:
                row = _Row(self, task, sparsity, seed, target, Path(folder))
                for n, name in names.items():
                    if work.done(name):
                        continue
                    if work.left_s < slowest:
                        say(f"part d: no time for another cell, which takes {slowest:.0f} s")
                        return
                    start = time.monotonic()
                    work.attempt(name, partial(row.cell, n))
                    slowest = max(slowest, time.monotonic() - start)


def cell_name(task: StudyTask, sparsity: float, n: int, seed: int) -> str:
    """Name under which a cell is stored."""
    return f"d-{task.name}-{round(100 * sparsity)}-{n}-seed{seed}"


@dataclass(frozen=True)
class _Row:
    """The cells of one task, sparsity and seed. They share the pruned and trained model."""

    study: Study
    task: StudyTask
    sparsity: float
    seed: int
    target: str
    folder: Path
    """Folder of finished models."""

    @cached_property
    def evaluator(self) -> Evaluator:
        """The evaluator of model and data, which are read at the first use."""
        request = Request(
            model=self.task.model,
            data=self.task.data,
            passes="-",
            seed=self.seed,
            device=self.study.device,
            batch=self.study.batch,
        )
        opened = open_evaluator(request, parse_target(self.target), Progress())
        return opened.with_store(Store(self.folder), no_record)

    def cell(self, n: int) -> Facts:
        """Train, score and time one cell."""
        minutes = self.study.minutes
        text = (
            f"pool-early,prune{{sparsity={self.sparsity:g}}},slice,reconstruct,"
            f"distill{{minutes={minutes:g}}}"
        )
        if n > 1:
            text += f",mux{{n={n}}},warm-up{{minutes={minutes / 2:g}}}"
            text += f",distill{{minutes={minutes / 2:g}}}"
        evaluator, pipeline = self.evaluator, Pipeline.parse(text)
        role = "certify" if evaluator.test_rows is None else "test"
        model = evaluator.builder.build(pipeline)
        score = evaluator.predictor.score(pipeline, role)
        return {
            "task": self.task.name,
            "sparsity": self.sparsity,
            "n": n,
            "seed": self.seed,
            "pipeline": text,
            "metric": evaluator.metric,
            "rows": role,
            "score": score,
            "score_dense": evaluator.dense_score(role),
            "layers": [[x.heads, x.ffn] for x in model.encoder.layers],
            **self.speed(model.encoder),
        }

    def speed(self, encoder: Any) -> Facts:
        """Time a shape in turn with the given model's shape, on the device's best engine."""
        evaluator, study = self.evaluator, self.study
        length = min(study.length, encoder.most_tokens)
        batches = workload(evaluator.certify_rows, study.batch, length)
        target = parse_target(self.target).baseline()
        ctx = replace(evaluator.ctx, workload=batches, target=target)
        dense_ms, ms = time_ms([evaluator.model.encoder, encoder], ctx, ROUNDS)
        rows = sum(len(x.rows) for x in batches)
        return {
            "target": str(target),
            "batch": study.batch,
            "length": length,
            "rows_per_second": 1000 * rows / ms,
            "rows_per_second_dense": 1000 * rows / dense_ms,
            "throughput_ratio": dense_ms / ms,
        }


def means(results: Sequence[Facts]) -> list[Facts]:
    """Summarise each cell over seeds: mean, lowest and highest score, median throughput."""
    found: dict[tuple[str, float, int], list[Facts]] = {}
    for x in results:
        if "score" in x:
            found.setdefault((x["task"], x["sparsity"], x["n"]), []).append(x)
    return [
        {
            "task": task,
            "sparsity": sparsity,
            "n": n,
            "seeds": len(each),
            "score": fmean(x["score"] for x in each),
            "low": min(x["score"] for x in each),
            "high": max(x["score"] for x in each),
            "score_dense": fmean(x["score_dense"] for x in each),
            "throughput_ratio": float(np.median([x["throughput_ratio"] for x in each])),
            "rows_per_second": float(np.median([x["rows_per_second"] for x in each])),
        }
        for (task, sparsity, n), each in sorted(found.items())
    ]


def fastest(cells: Sequence[Facts], task: str) -> list[tuple[float, Facts | None]]:
    """For each level, the fastest cell of the task whose score reaches it; None = no cell."""
    mine = [x for x in cells if x["task"] == task]
    if not mine:
        return []
    dense = mine[0]["score_dense"]
    found = []
    for level in LEVELS:
        least = level if task.startswith("mnli") else dense - (MNLI_DENSE - level)
        able = [x for x in mine if x["score"] >= least]
        best = max(able, key=lambda x: x["throughput_ratio"], default=None)
        found.append((least, best))
    return found
