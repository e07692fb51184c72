"""Training in several processes: two on this CPU, which stand for the GPUs of a machine."""

from __future__ import annotations

import pickle
import time
from argparse import ArgumentTypeError
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prumux.optimizer.base import bfloat16 as precision
from prumux.optimizer.base.devices import device
from prumux.optimizer.base.errors import LostError, MissingError, UsageError
from prumux.optimizer.base.store import Store
from prumux.optimizer.cli.console import device_name
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.run.request import Request
from prumux.passes.distill import Distill
from prumux.passes.training import loop as training
from prumux.passes.training import worker_processes
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.layer_matching import matched_error
from prumux.passes.training.loop import TrainingSchedule, train
from prumux.passes.training.row_order import stream
from prumux.passes.training.teacher import ModelOutputs
from prumux.passes.training.worker_processes import ParallelJob, Worker, devices, started
from tests.helpers.factory import make_context, random_batch, random_model
from tests.helpers.masking import worst
from tests.helpers.teams import (
    BATCH,
    ROWS,
    Faulty,
    Several,
    broken,
    context,
    elsewhere,
    faulty,
)

LENGTH = TrainingSchedule(3.0, None, BATCH)


@pytest.fixture(scope="module", autouse=True)
def two() -> Iterator[list[Worker]]:
    """Two processes for every training; the list gets the second ones."""
    workers: list[Worker] = []

    def kept(*arguments: Any) -> Worker:
        workers.append(started(*arguments))
        return workers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2])
        patch.setattr(worker_processes, "devices", lambda _: ("cpu", "cpu"))
        patch.setattr(worker_processes, "started", kept)
        patch.setattr(training, "LEAST_STEPS", 0)
        patch.setattr(precision, "fast_bf16", lambda _: False)
        yield workers


@dataclass
class Trained:
    """What became of a training, and its gradients by step and group."""

    learner: Several
    facts: dict[str, Any]
    gradients: list[list[Tensor | None]]


def trained(ctx: Context, together: bool, stop_at: int = -1) -> Trained:
    learner, gradients = Several(ctx), list[list[Tensor | None]]()
    learner.stop_at = stop_at
    clip = nn.utils.clip_grad_norm_

    def noted(parameters: list[nn.Parameter], most: float) -> Tensor:
        gradients.append([None if p.grad is None else p.grad.clone() for p in parameters])
        return clip(parameters, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.utils, "clip_grad_norm_", noted)
        make = elsewhere if together else None
        facts = train(learner, ctx.fit, LENGTH, ctx, "x", make=make)
    return Trained(learner, facts, gradients)


@pytest.fixture(scope="module")
def alone() -> Trained:
    return trained(context(), together=False)


@pytest.fixture(scope="module")
def together() -> Trained:
    return trained(context(), together=True)


def test_gradients_are_those_of_the_whole_batch(alone: Trained, together: Trained) -> None:
    assert len(alone.gradients) == len(together.gradients) == 18 * len(alone.learner.groups())
    for a, b in zip(alone.gradients, together.gradients, strict=True):
        assert [x is None for x in a] == [x is None for x in b]
        # Of all: the gradient of a key's bias is 0 but for rounding.
        most = max((float(x.abs().max()) for x in a if x is not None), default=0.0)
        for x, y in zip(a, b, strict=True):
            if x is not None and y is not None:
                assert worst(x, y) <= 1e-4 * most
    assert (alone.facts.get("devices"), together.facts["devices"]) == (None, 2)
    assert together.facts["validation_loss"] == pytest.approx(
        alone.facts["validation_loss"], rel=1e-5
    )


def test_weights_are_those_of_one_process(alone: Trained, together: Trained) -> None:
    start, moved = Several(context()), 0.0
    for name, part in start.parts.items():
        a, b = alone.learner.parts[name].module, together.learner.parts[name].module
        for (key, p), q, r in zip(
            a.named_parameters(), b.parameters(), part.module.parameters(), strict=True
        ):
            if not key.endswith("attention.key.bias"):
                assert worst(p.data, q.data) < 1e-5, (name, key)
                moved = max(moved, worst(p.data, r.data))
    assert moved > 1e-3


def test_a_killed_run_goes_on_to_the_same_result(
    two: list[Worker], together: Trained, tmp_path: Path
) -> None:
    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trained(context(store=store), together=True, stop_at=11)
    assert two[-1].process.returncode == -9
    again = trained(context(store=store), together=True)
    assert 0 < again.learner.steps < together.learner.steps
    # Not to the last bit: sums may be taken in another order where memory lies otherwise.
    assert again.facts["validation_loss"] == pytest.approx(
        together.facts["validation_loss"], rel=1e-5
    )
    for group, expected in zip(again.learner.groups(), together.learner.groups(), strict=True):
        for p, q in zip(group["params"], expected["params"], strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "cpu ended: ValueError: the loss is out of range"),
        ("dies", "cpu ended with code -9"),
    ],
)
def test_a_fault_elsewhere_ends_the_run_and_says_so(
    fault: str, message: str, two: list[Worker]
) -> None:
    ctx, start = context(), time.monotonic()
    with pytest.raises(LostError, match=f"(?s){message}\nrepeat.*--resume"):
        train(Faulty(), ctx.fit, LENGTH, ctx, "x", make=partial(faulty, fault))
    assert time.monotonic() - start < 60
    assert two[-1].process.returncode is not None


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("raises", "cpu:1 ended: ValueError: the loss is out of range"),
        ("dies", "cpu:1 ended with code -9"),
    ],
)
def test_of_three_processes_the_one_at_fault_is_named(
    fault: str, message: str, two: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_processes, "devices", lambda _: ("cpu", "cpu:0", "cpu:1"))
    ctx = context()
    with pytest.raises(LostError, match=f"(?s){message}\nrepeat.*--resume"):
        train(Faulty(), ctx.fit, LENGTH, ctx, "x", make=partial(faulty, fault, "cpu:1"))
    assert all(x.process.returncode is not None for x in two[-2:])


def test_what_cannot_be_built_elsewhere_is_said() -> None:
    ctx = context()
    with pytest.raises(LostError, match="cpu ended: ValueError: no cpu will do"):
        train(Faulty(), ctx.fit, LENGTH, ctx, "x", make=broken)


def test_nobody_is_left_where_the_main_process_is_gone(tmp_path: Path) -> None:
    ctx = context()
    packed = ParallelJob(partial(faulty, ""), ctx.fit, BATCH, ctx).packed()
    (tmp_path / "job").write_bytes(pickle.dumps((packed, ("cpu", "cpu"), 1)))
    worker = started(str(tmp_path), 1, "cpu", 0)
    end = time.monotonic() + 60
    while not (tmp_path / "ready-1").exists():  # then it waits for the main process
        assert time.monotonic() < end
        assert worker.why_ended(0.05) is None
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(60) == 1


@pytest.mark.parametrize("seed", range(8))
def test_layers_are_matched_by_the_whole_batch(seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    found, aim = (torch.randn(n, 4, 3, 2, generator=random) for n in (3, 2))
    real = torch.ones(4, 3, dtype=torch.bool)
    real[0, 1:] = False

    def error(rows: slice, parallel: DataParallel) -> float:
        states, wanted = (dict(enumerate(x[:, rows])) for x in (found, aim))
        none = torch.zeros(0)
        student, teacher = ModelOutputs(none, states), ModelOutputs(none, wanted)
        return float(matched_error(student, teacher, [0, 1, 2], real[rows], parallel=parallel))

    meeting, shares = Barrier(2), dict[int, Tensor]()

    class InThread(DataParallel):
        """One of two threads in place of processes."""

        def total(self, x: Tensor) -> Tensor:
            shares[self.rank] = x.detach()
            meeting.wait(60)
            found = shares[0] + shares[1]
            meeting.wait(60)
            return found

    with ThreadPoolExecutor(1) as threads:
        later = threads.submit(error, slice(1, 4), InThread(1, 2))
        assert error(slice(0, 1), InThread(0, 2)) + later.result() == pytest.approx(
            error(slice(0, 4), ALONE), rel=1e-5
        )


@pytest.mark.parametrize("slots", [1, 2, 3])
@pytest.mark.parametrize("size", [2, 3, 5])
def test_shares_are_whole_groups_and_make_up_the_batch(slots: int, size: int) -> None:
    rows = context().fit
    batches = stream(rows, 12, seed=0, slots=slots)
    for _ in range(2 * ROWS // 12):
        batch = next(batches)
        parts = [DataParallel(i, size).part(batch, slots) for i in range(size)]
        if len(batch.rows) // slots < size:
            assert all(part is batch for part in parts)
            continue
        assert all(len(x.rows) and len(x.rows) % slots == 0 for x in parts)
        assert np.array_equal(np.concatenate([x.rows for x in parts]), batch.rows)
        assert np.array_equal(np.concatenate([x.input_ids for x in parts]), batch.input_ids)
        assert {x.input_ids.shape[1] for x in parts} == {batch.input_ids.shape[1]}
        assert ALONE.part(batch, slots) is batch


@pytest.mark.parametrize(
    "text",
    ["distill{epochs=1}", "learn-masks{sparsity=0.5 epochs=1}", "mux{n=2},warm-up{epochs=1}"],
)
def test_every_training_can_be_built_elsewhere(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    @contextmanager
    def processes(job: ParallelJob) -> Iterator[DataParallel]:
        jobs.append(pickle.loads(job.packed()))
        yield ALONE

    monkeypatch.setattr(training, "processes", processes)
    Pipeline.parse(text).run(random_model(heads=(3, 2), ffn=(8, 8), hidden=12), context())
    (job,) = jobs
    batch = next(stream(job.rows, job.batch, job.ctx.seed, slots=2))
    losses = [job.make(ctx=job.ctx).loss(batch, 0.5, ALONE).item() for _ in range(2)]
    assert losses[0] == losses[1] > 0


def test_a_lost_process_is_no_fault_of_the_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(heads=(3, 2), ffn=(8, 8), hidden=12)

    def gone(*_: object) -> None:
        raise LostError("gone")

    monkeypatch.setattr(Distill, "run", gone)
    with pytest.raises(LostError, match=r"^gone$"):
        Pipeline.parse("distill").run(model, make_context(model, random_batch(model)))


def test_cuda_is_all_gpus_and_one_alone_starts_nothing(
    two: list[Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.distributed.is_nccl_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 1)
    assert devices("cuda") == ("cuda", "cuda:0", "cuda:2")
    assert devices("cuda:1") == ("cuda:1",)
    assert devices("cpu") == ("cpu",)
    before, ctx = len(two), context()
    monkeypatch.setattr(worker_processes, "devices", lambda _: ("cpu",))
    train(Faulty(), ctx.fit, LENGTH, ctx, "x", make=partial(faulty, ""))
    assert len(two) == before


@pytest.mark.parametrize(
    ("length", "short"),
    [
        (TrainingSchedule(3.0, None, 8), True),
        (TrainingSchedule(50.0, None, 8), False),
        (TrainingSchedule(None, 0.5, 8), True),
        (TrainingSchedule(None, 5.0, 8), False),
    ],
)
def test_short_runs_start_nothing(
    length: TrainingSchedule, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LEAST_STEPS", 500)
    assert length.short(epoch_steps=20) is short


def test_one_gpu_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert [device(x) for x in ("auto", "cpu", "cuda", "cuda:1")] == [
        *("cuda", "cpu", "cuda", "cuda:1")
    ]
    with pytest.raises(MissingError, match="no cuda:2: 2 CUDA devices"):
        device("cuda:2")
    for name in ("gpu", "cuda:", "cuda:x", "cuda:-1", "cuda,cpu"):
        with pytest.raises(ArgumentTypeError):
            device_name(name)
        with pytest.raises(UsageError, match=f"device is '{name}'"):
            Request(model="m", device=name)
    assert Request(model="m", device="cuda:1").device == device_name("cuda:1")
    assert Request(model="m").device == "auto"
    with pytest.raises(UsageError, match="write --workers 2 --device cuda"):
        Request(model="m", device="cuda:1", workers=2)
