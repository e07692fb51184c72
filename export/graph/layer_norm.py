"""LayerNorm as an ONNX operator: y = (x - mean) / sqrt(variance + eps) * scale + shift."""

from __future__ import annotations

from torch import Tensor

from .builder import GraphBuilder


def layer_norm(b: GraphBuilder, name: str, x: str, eps: float, node: str = "") -> str:
    """LayerNorm over the last axis with the weights of a name.

    The node has the name of its weights unless `node` gives another.
    """
    scale, shift = b.weights[f"{name}.weight"], b.weights.get(f"{name}.bias")
    return write_norm(b, node or name, x, stored_norm(b, name, scale, shift), eps)


def stored_norm(
    b: GraphBuilder, name: str, scale: Tensor, shift: Tensor | None
) -> tuple[str, ...]:
    """Store a scale and a shift, [D] each, under a name; their names in the graph."""
    scales = (b.floats(f"{name}.weight", scale),)
    return scales if shift is None else (*scales, b.floats(f"{name}.bias", shift))


def write_norm(b: GraphBuilder, node: str, x: str, stored: tuple[str, ...], eps: float) -> str:
    """LayerNorm over the last axis with a stored scale and shift."""
    # `stash_type` 1: statistics are computed in float32, whatever the type of the graph.
    low = {"stash_type": 1} if b.low else {}
    return b.op("LayerNormalization", node, x, *stored, axis=-1, epsilon=eps, **low)
