"""Return freed memory to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache
from typing import Any


def release_memory() -> None:
    """Return freed memory to the system, after a step that needed much.

    glibc keeps freed blocks for later allocations. Without this call, the memory of a run
    could grow to the sum of the needs of its steps instead of the largest need. With other C
    libraries the function does nothing.
    """
    if (trim := _malloc_trim()) is not None:
        trim(0)


@cache
def _malloc_trim() -> Any:
    with suppress(OSError, AttributeError):
        return ctypes.CDLL(None).malloc_trim
    return None
