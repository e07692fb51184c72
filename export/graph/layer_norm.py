"""LayerNorm as an ONNX operator: y = (x - mean) / sqrt(variance + eps) * scale + shift."""

from __future__ import annotations

from torch import Tensor

from .builder import GraphBuilder


def layer_norm(b: GraphBuilder, name: str, x: str, eps: float, node: str = "") -> str:
    """LayerNorm over the last axis with the weights of a name.

    The node has the name of its weights unless `node` gives another.
    """
    scale, shift = b.weights[f"{name}.weight"], b.weights.get(f"{name}.bias")
    return scaled_norm(b, node or name, name, x, scale, shift, eps=eps)


def scaled_norm(
    b: GraphBuilder,
    node: str,
    stored: str,
    x: str,
    scale: Tensor,
    shift: Tensor | None,
    *,
    eps: float,
) -> str:
    """LayerNorm with a given scale and shift, [D] each, which are stored under a name."""
    names = [b.floats(f"{stored}.weight", scale)]
    if shift is not None:
        names.append(b.floats(f"{stored}.bias", shift))
    # `stash_type` 1: statistics are computed in float32, whatever the type of the graph.
    low = {"stash_type": 1} if b.low else {}
    return b.op("LayerNormalization", node, x, *names, axis=-1, epsilon=eps, **low)
