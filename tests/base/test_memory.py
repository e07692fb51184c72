"""Freed memory goes back to the system."""

from __future__ import annotations

import sys

import pytest

from prumux.optimizer.base.memory import _malloc_trim, release_memory


def resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 - not a real file
        return int(file.read().split()[1]) * 4096


def test_memory_is_released() -> None:
    release_memory()
    if sys.platform != "linux" or _malloc_trim() is None:
        pytest.skip("only glibc returns memory on request")
    before = resident_bytes()
    blocks = [bytearray(b"x") * 60_000 for _ in range(4000)]  # below the size of a mapping
    keeps_the_heap_long = bytearray(b"x") * 60_000
    assert resident_bytes() - before > 200e6
    del blocks
    release_memory()
    assert resident_bytes() - before < 50e6
    assert keeps_the_heap_long


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prumux.optimizer.base.memory._malloc_trim", lambda: None)
    release_memory()
