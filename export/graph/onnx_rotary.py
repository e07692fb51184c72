"""Rotary positions in standard ONNX operators."""

from __future__ import annotations

from prumux.optimizer.model.ops import Rotary

from .builder import GraphBuilder


def rotated(  # noqa: PLR0917 - a state and all that turns it
    b: GraphBuilder, size: int, at: str, x: str, rotary: Rotary, angles: tuple[str, str]
) -> str:
    """Rotate states [B, H, T, K] of heads of size K by cosines and sines [T, K/2]."""
    cos, sin = angles
    half, step = size // 2, 2 if rotary.interleaved else 1
    starts = (0, 1) if rotary.interleaved else (0, half)
    ends = (size, size) if rotary.interleaved else (half, size)
    one, two = (
        b.op(
            "Slice",
            f"{at}.half{i}",
            x,
            *(b.integers(v) for v in (starts[i], ends[i], 3, step)),
        )
        for i in range(2)
    )
    parts = []
    for i, (kind, left, right) in enumerate((("Sub", one, two), ("Add", two, one))):
        a = b.op("Mul", f"{at}.cos{i}", left, cos)
        c = b.op("Mul", f"{at}.sin{i}", right, sin)
        parts.append(b.op(kind, f"{at}.turned{i}", a, c))
    if not rotary.interleaved:
        return b.op("Concat", f"{at}.rotated", *parts, axis=-1)
    wide = [
        b.op("Unsqueeze", f"{x}.wide", x, b.integers(4)) for x in parts
    ]  # [B, H, T, K/2, 1]
    joined = b.op("Concat", f"{at}.pairs", *wide, axis=-1)
    return b.op("Reshape", f"{at}.rotated", joined, b.integers(0, 0, 0, size))
