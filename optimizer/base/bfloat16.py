"""Where bfloat16 arithmetic is in hardware, so that scoring and training may use it."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch


@functools.cache
def fast_bf16(device: str) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.exists() else []
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: str) -> AbstractContextManager[object]:
    """bfloat16 autocast where it pays, else nothing."""
    if not fast_bf16(device):
        return nullcontext()
    return torch.autocast(device.partition(":")[0], torch.bfloat16)
