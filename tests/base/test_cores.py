"""Rounds wait for near threads, but not for ever."""

import time
from collections.abc import Sequence

import pytest
import torch

from prumux.optimizer.base import cores
from prumux.optimizer.base.cores import CoreMonitor
from prumux.optimizer.timing.interleave import interleave


def costing(monkeypatch: pytest.MonkeyPatch, costs_us: Sequence[float]) -> list[float]:
    """Joining costs these, one after the other; what was slept is returned as it grows."""
    naps: list[float] = []
    left = iter(costs_us)
    monkeypatch.setattr(cores, "join_us", lambda: next(left))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(time, "sleep", naps.append)
    return naps


def test_far_threads_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    naps = costing(monkeypatch, [5.7, 8.2, 8.3, 5.8])
    watch = CoreMonitor(patience_s=10)
    watch.wait()
    assert naps == []
    watch.wait()
    assert len(naps) == 2
    assert watch.seen_us == [5.7, 5.8]
    assert watch.facts() == {"thread_join_us": "5.8 [5.7, 5.8]"}


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    naps = costing(monkeypatch, [5.0] + [9.0] * 6)
    watch = CoreMonitor(patience_s=2 * cores.NAP_S)
    for _ in range(5):
        watch.wait()
    assert len(naps) == 2
    assert watch.facts() == {"thread_join_us": "9.0 [5.0, 9.0]"}


def test_patience_is_earned_by_rounds_and_has_an_end() -> None:
    watch = CoreMonitor(most_s=3)
    for _ in range(5):
        watch.earn(1000)
    assert (watch.patience_s, watch.most_s) == (3, 0)


def test_threads_that_were_far_from_the_start_are_not_waited_for_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    naps = costing(monkeypatch, [9.0, 5.0, 5.5])
    watch = CoreMonitor(patience_s=10)
    for _ in range(3):
        watch.wait()
    assert naps == []


def test_one_thread_has_none_to_wait_for(monkeypatch: pytest.MonkeyPatch) -> None:
    costing(monkeypatch, [])
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    watch = CoreMonitor()
    watch.wait()
    assert watch.facts() == {}


def test_each_timed_round_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    costing(monkeypatch, [5.0] * 6)
    watch = CoreMonitor()
    interleave([lambda: None, lambda: None], rounds=3, warmup=2, cores=watch)
    assert watch.seen_us == [5.0] * 6


def test_a_real_joining_takes_time() -> None:
    assert 0 < cores.join_us() < 1e6
