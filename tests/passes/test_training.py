"""The training loop: what it reads, when it stops, how it goes on after a kill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.passes.training.data_parallel import ALONE, DataParallel
from prumux.passes.training.loop import CHECKS, TrainingSchedule, train
from prumux.passes.training.row_order import stream
from tests.helpers.factory import make_context, random_model


def rows(count: int = 50) -> Encoded:
    rng = np.random.default_rng(0)
    ids = tuple(tuple(range(1, int(n) + 1)) for n in rng.integers(1, 30, count))
    return Encoded(ids=Ragged.of(ids), types=None, labels=None, pad_id=0)


class Line:
    """Fits one number to the mean length of a batch; may stop the world."""

    slots = 1

    def __init__(self, stop_at: int = 10**9, spoil_at: int = 10**9) -> None:
        self.value = nn.Parameter(torch.zeros(1))
        self.stop_at, self.spoil_at, self.calls = stop_at, spoil_at, 0

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.value], "lr": 0.5}]

    def loss(self, batch: Batch, progress: float, parallel: DataParallel) -> Tensor:
        assert parallel is ALONE
        assert 0 <= progress < 1
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        aim = float(batch.attention_mask.sum(1).mean())
        scale = float("nan") if self.calls >= self.spoil_at else 1.0
        return (self.value - aim).square().sum() * scale

    def validation_loss(self) -> float:
        return abs(self.value.item() - 12.0)


def test_an_epoch_has_every_row_once_and_shapes_are_few() -> None:
    data = rows()
    batches = stream(data, 8, seed=1)
    first = [next(batches) for _ in range(7)]
    second = [next(batches) for _ in range(7)]
    for epoch in (first, second):
        assert sorted(i for b in epoch for i in b.rows) == list(range(50))
        assert all(b.input_ids.shape[1] % 8 == 0 for b in epoch)
    assert [list(b.rows) for b in first] != [list(b.rows) for b in second]


@pytest.mark.parametrize("start", [0, 1, 6, 7, 9, 20])
def test_a_stream_can_be_entered_anywhere(start: int) -> None:
    data = rows()
    whole, late = stream(data, 8, seed=3), stream(data, 8, seed=3, start=start)
    for _ in range(start):
        next(whole)
    for _ in range(10):
        assert np.array_equal(next(whole).input_ids, next(late).input_ids)


def test_rows_of_like_length_share_a_batch() -> None:
    data = rows(400)
    spread = [
        np.ptp(data.lengths[next(s).rows]) for s in [stream(data, 16, 0)] for _ in range(20)
    ]
    assert np.mean(spread) < 3 < np.ptp(data.lengths)


def test_rows_of_a_query_share_a_batch() -> None:
    data = rows(400)
    queries = np.random.default_rng(0).permutation(np.repeat(np.arange(50), 8))
    grouped = replace(data, groups=queries)
    batches = [b for _, b in zip(range(25), stream(grouped, 16, seed=2), strict=False)]
    assert sorted(np.concatenate([b.rows for b in batches]).tolist()) == list(range(400))
    for batch in batches:
        assert batch.groups is not None
        assert np.array_equal(batch.groups, queries[batch.rows])
        # Batches of 16 rows hold two whole queries.
        assert np.unique(queries[batch.rows], return_counts=True)[1].tolist() == [8, 8]
    late = stream(grouped, 16, seed=2, start=24)
    assert np.array_equal(next(late).rows, batches[24].rows)


def test_epochs_and_minutes() -> None:
    assert (
        TrainingSchedule(2.0, None, 10).progress(step=5, seconds=1e9, epoch_steps=10) == 0.25
    )
    assert (
        TrainingSchedule(3.0, None, 1000).progress(step=1, seconds=0.0, epoch_steps=1) == 1 / 3
    )
    assert (
        TrainingSchedule(None, 2.0, 10).progress(step=5, seconds=30.0, epoch_steps=10) == 0.25
    )
    assert (
        TrainingSchedule(None, 2.0, 10).progress(step=5, seconds=300.0, epoch_steps=10) == 1.0
    )


def test_trains_so_many_steps_and_keeps_the_best() -> None:
    line = Line()
    facts = train(
        line, rows(), TrainingSchedule(16.0, None, 8), make_context(random_model()), "x"
    )
    assert facts["step"] == 112  # 16 epochs of 7 batches, the last of them with two rows
    assert len(facts["validation_loss"]) == CHECKS + 1
    assert abs(line.value.item() - 12.0) == min(facts["validation_loss"])
    assert facts["validation_loss"][0] == 12.0 > min(facts["validation_loss"])


@pytest.mark.parametrize("stop_at", [3, 51, 98])
def test_a_killed_run_goes_on_to_the_same_result(stop_at: int, tmp_path: Path) -> None:
    length, data, model = TrainingSchedule(16.0, None, 8), rows(), random_model()
    whole = Line()
    expected = train(whole, data, length, make_context(model), "x")
    ctx = make_context(model, store=Store(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        train(Line(stop_at=stop_at), data, length, ctx, "x")
    again = Line()
    found = train(again, data, length, ctx, "x")
    assert torch.equal(again.value, whole.value)
    assert found["validation_loss"] == expected["validation_loss"]
    assert again.calls == {3: 112, 51: 70, 98: 28}[stop_at]  # it was checked 8 times
    at_the_end = Line()  # killed before what came out was stored
    assert train(at_the_end, data, length, ctx, "x") == found
    assert torch.equal(at_the_end.value, whole.value)
    assert at_the_end.calls == 0
    assert list(tmp_path.glob("*.checkpoint"))
    ctx.store.drop()
    assert not list(tmp_path.glob("*.checkpoint"))


def test_divergence_is_said_with_its_remedy() -> None:
    message = r"training diverged: the loss is nan after 14 steps\nuse a smaller lr"
    with pytest.raises(PassError, match=message):
        train(
            Line(spoil_at=9),
            rows(),
            TrainingSchedule(16.0, None, 8),
            make_context(random_model()),
            "x",
        )


@pytest.mark.parametrize("damage", [b"", b"junk", None])
def test_a_damaged_checkpoint_counts_as_none(damage: bytes | None, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save("x", {"a": torch.ones(3)}, {"step": 1})
    path = tmp_path / "x.checkpoint"
    assert store.load("x") is not None
    path.write_bytes(path.read_bytes()[:-4] if damage is None else damage)
    assert store.load("x") is None
