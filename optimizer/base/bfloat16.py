"""bfloat16 autocast on devices that compute it in hardware."""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch

from .processors import proc_lines


@functools.cache
def fast_bf16(device: str) -> bool:
    """True if the device multiplies bfloat16 matrices faster than float32 ones."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported())
    flags = " ".join(proc_lines("cpuinfo")).split()
    return "avx512_bf16" in flags or "amx_bf16" in flags


def autocast(device: str) -> AbstractContextManager[object]:
    """bfloat16 autocast if the device is faster with it, else a context that does nothing."""
    if not fast_bf16(device):
        return nullcontext()
    return torch.autocast(device.partition(":")[0], torch.bfloat16)
