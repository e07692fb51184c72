"""Branches with a gated FFN and with rotary positions. Several families share them."""

from __future__ import annotations

from collections.abc import Container

from prumux.optimizer.model.axes import FFN, HEADS, HIDDEN, Weight, linear
from prumux.optimizer.model.ops import Ops, Rotary, Value
from prumux.optimizer.model.sizes import Branch


def gated_maps(branch: Branch, biased: Container[str] = ()) -> tuple[Weight, ...]:
    """The weights of a branch's linear maps. The output map is the last.

    Args:
        branch: attention, or an FFN with the maps `up`, `gate` and `down`.
        biased: names of the maps with a bias, such as `query`.
    """
    at, i = branch.name, branch.index
    inputs = ("up", "gate") if branch.kind == "ffn" else ("query", "key", "value")
    units = FFN if branch.kind == "ffn" else HEADS
    maps = [linear(f"{at}.{x}", units, HIDDEN, i, bias=x in biased) for x in inputs]
    written = branch.output.rpartition(".")[2] in biased
    output = linear(branch.output, HIDDEN, units, i, bias=written)
    return (*(weight for x in maps for weight in x), *output)


def gated_inner(  # noqa: PLR0917 - a branch and the differences between families
    ops: Ops,
    branch: Branch,
    x: Value,
    rows: Value,
    rotary: Rotary,
    window: int | None = None,
) -> Value:
    """See `Family.inner`. Computes g(up) * gate, or attention with rotary positions."""
    at = branch.name
    if branch.kind == "ffn":
        up = ops.activation(ops.encoder.activation, ops.linear(f"{at}.up", rows))
        return ops.multiply(up, ops.linear(f"{at}.gate", rows))
    return ops.attention(
        branch,
        ops.linear(f"{at}.query", rows),
        ops.linear(f"{at}.key", x),
        ops.linear(f"{at}.value", x),
        rotary=rotary,
        window=window,
    )
