"""bfloat16 is used where it is measured to be faster, whatever a processor's flags say."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from prumux.optimizer.base import bfloat16


@pytest.mark.parametrize(
    ("flags", "half_s", "fast"),
    [("avx512_bf16", 0.4, True), ("avx512_bf16", 2.0, False), ("avx2", 0.4, False)],
)
def test_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, flags: str, half_s: float, fast: bool
) -> None:
    def seconds(rows: torch.Tensor, weight: torch.Tensor) -> float:
        assert rows.dtype == weight.dtype
        return half_s if rows.dtype == torch.bfloat16 else 1.0

    monkeypatch.setattr(bfloat16, "proc_lines", lambda _: [f"flags : fpu {flags}"])
    monkeypatch.setattr(bfloat16, "_seconds", seconds)
    bfloat16.fast_bf16.cache_clear()
    try:
        assert bfloat16.fast_bf16("cpu") is fast
        assert isinstance(bfloat16.autocast("cpu"), nullcontext) is not fast
    finally:
        bfloat16.fast_bf16.cache_clear()
