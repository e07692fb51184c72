"""Return freed memory to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any


def release_memory() -> None:
    """Return freed memory to the system, after a step that needed much.

    glibc keeps freed blocks for later allocations. A run would keep the sum of what its steps
    needed, and not the largest of them. Other C libraries have no such call: then nothing
    happens.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    with suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return None
