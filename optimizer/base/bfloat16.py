"""bfloat16 autocast on devices that compute bfloat16 in hardware."""

from __future__ import annotations

import functools
import time
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.functional import linear

from .processors import proc_lines

ROWS, INNER, OUTER = 512, 384, 1536
"""Sizes of the timed matrix product: an FFN of MiniLM."""
ROUNDS = 7
GAIN = 1.2
"""The smallest useful speed-up of bfloat16. Conversions cancel out a smaller speed-up."""


@functools.cache
def fast_bf16(device: str) -> bool:
    """True if the device multiplies bfloat16 matrices clearly faster than float32 ones.

    Processor flags are not enough: one processor with `avx512_bf16` was twice as slow in
    bfloat16 as in float32. A processor with the flags is therefore timed.
    """
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    flags = " ".join(proc_lines("cpuinfo")).split()
    if "avx512_bf16" not in flags and "amx_bf16" not in flags:
        return False
    rows, weight = torch.ones(ROWS, INNER), torch.ones(OUTER, INNER)
    pairs = [(rows.to(x), weight.to(x)) for x in (torch.float32, torch.bfloat16)]
    rounds = [[_seconds(*x) for x in pairs] for _ in range(ROUNDS)]
    single, half = (min(x) for x in zip(*rounds, strict=True))
    return bool(single > GAIN * half)


def autocast(device: str) -> AbstractContextManager[object]:
    """bfloat16 autocast if `fast_bf16(device)`, else a context that does nothing."""
    if not fast_bf16(device):
        return nullcontext()
    return torch.autocast(device.partition(":")[0], torch.bfloat16)


def _seconds(rows: torch.Tensor, weight: torch.Tensor) -> float:
    start = time.perf_counter()
    linear(rows, weight)
    return time.perf_counter() - start
