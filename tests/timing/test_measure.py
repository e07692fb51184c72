"""Timing: the order of runs, what is kept, what is quoted. The clock is a fake."""

import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prumux.optimizer.timing import interleave as measure
from prumux.optimizer.timing.interleave import Timing, interleave, percentile_ms, speedup


class Clock:
    """Moves only when a run says so."""

    def __init__(self) -> None:
        self.now, self.ran = 0.0, ""

    def run(self, name: str, seconds: float) -> None:
        self.now += seconds
        self.ran += name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_runs_take_turns_and_every_second_round_runs_backwards(clock: Clock) -> None:
    ticks: list[int] = []
    slow, fast = interleave(
        [lambda: clock.run("A", 0.004), lambda: clock.run("B", 0.001)],
        rounds=3,
        warmup=2,
        tick=lambda: ticks.append(1),
    )
    assert clock.ran == "ABAB" + "AB" + "BA" + "AB"
    assert slow.rounds_ms == pytest.approx((4, 4, 4))
    assert fast.rounds_ms == pytest.approx((1, 1, 1))
    assert len(ticks) == 3


def test_drift_hits_all_alike(clock: Clock) -> None:
    def drifting(name: str, seconds: float) -> None:
        clock.run(name, seconds * (1 + clock.now))

    slow, fast = interleave(
        [lambda: drifting("A", 0.02), lambda: drifting("B", 0.01)], rounds=20
    )
    assert slow.high_ms > 1.5 * slow.low_ms
    assert speedup(slow, fast).median == pytest.approx(2, rel=0.03)


def test_what_is_quoted() -> None:
    timing = Timing((3.0, 1.0, 2.0, 10.0))
    assert (timing.median_ms, timing.low_ms, timing.high_ms) == (2.5, 1.0, 10.0)
    assert speedup(timing, Timing((1.0, 1.0, 4.0, 5.0))).rounds == (3.0, 1.0, 0.5, 2.0)
    with pytest.raises(ValueError, match="zip"):
        speedup(timing, Timing((1.0,)))


@given(
    st.lists(st.floats(0, 1e6), min_size=1, max_size=60),
    st.integers(0, 10_000).map(lambda x: x / 10_000),
)
def test_a_percentile_is_the_smallest_that_suffices(
    samples: list[float], share: float
) -> None:
    found, size = percentile_ms(samples, share), len(samples)
    assert found in samples

    def suffices(limit: float) -> bool:
        return sum(x <= limit for x in samples) >= share * size - 1e-9

    assert suffices(found)
    assert not any(suffices(x) for x in samples if x < found)


def test_percentiles_that_are_known() -> None:
    hundred = [float(x) for x in range(1, 101)]
    assert [percentile_ms(hundred, x) for x in (0, 0.01, 0.5, 0.95, 0.99, 1)] == [
        1, 1, 50, 95, 99, 100,
    ]  # fmt: skip
    assert percentile_ms([float(x) for x in range(10_000)], 0.9999) == 9998
    assert percentile_ms([5.0], 0.95) == 5


def test_short_runs_are_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "LEAST_MS", 50.0)
    counts = [0, 0]

    def run(i: int) -> None:
        counts[i] += 1

    def clock(work: Callable[[], object]) -> float:
        before = list(counts)
        work()
        return 10.0 if counts[0] > before[0] else 100.0

    short, long = interleave([lambda: run(0), lambda: run(1)], 3, 1, clock=clock, repeat=True)
    assert counts == [1 + 3 * 5, 1 + 3]
    assert (short.median_ms, long.median_ms) == (10.0, 100.0)
