"""Weights that know their axes.

An axis says how long it is and which mask cuts it. Expected shapes, what `slice` cuts, what a
unit costs in parameters and what a loader checks all follow from the axes of the weights.
Linear maps are [out, in] as in torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from torch import Tensor

from .masks import Masks
from .sizes import Encoder

AxisKind = Literal["fixed", "hidden", "embedding", "heads", "head", "ffn"]
WIDE: tuple[AxisKind, ...] = ("hidden", "heads", "head", "ffn")
"""Kinds of axes that masks cut and that `mux{units=apart}` repeats for every slot."""


@dataclass(frozen=True)
class Axis:
    """One axis of a weight.

    Kinds: `fixed` has `size` entries; `hidden` one entry a hidden dimension; `embedding` the
    width of the embedding tables, which are hidden dimensions unless a linear map follows;
    `heads` K entries for each head of the weight's layer; `head` one entry a head; `ffn` one
    entry an FFN unit.
    """

    kind: AxisKind
    size: int = 0


HIDDEN = Axis("hidden")
EMBEDDING = Axis("embedding")
HEADS = Axis("heads")
HEAD = Axis("head")
FFN = Axis("ffn")


def fixed(size: int) -> Axis:
    """An axis that no mask cuts."""
    return Axis("fixed", size)


@dataclass(frozen=True)
class Weight:
    """One tensor: its name and what its axes mean; `layer` is -1 outside the layers."""

    name: str
    axes: tuple[Axis, ...]
    layer: int = -1

    def kinds(self, e: Encoder) -> tuple[AxisKind, ...]:
        """The kinds of the axes in an encoder: `embedding` is `hidden` or `fixed` there."""
        width: AxisKind = "fixed" if e.projected else "hidden"
        return tuple(width if x.kind == "embedding" else x.kind for x in self.axes)

    def shape(self, e: Encoder) -> tuple[int, ...]:
        """Length of every axis."""
        return tuple(self._length(axis, e) for axis in self.axes)

    def kept(self, e: Encoder, masks: Masks) -> tuple[Tensor | None, ...]:
        """For every axis what is kept of it, bool; None where no mask cuts it."""
        return tuple(self._mask(kind, e, masks) for kind in self.kinds(e))

    def per_unit(self, e: Encoder) -> tuple[int, int]:
        """Parameters that belong to one head or FFN unit of its branch, and all others."""
        shape = self.shape(e)
        if "heads" in self.kinds(e) or "head" in self.kinds(e):
            return prod(shape) // max(1, e.layers[self.layer].heads), 0
        if "ffn" in self.kinds(e):
            return prod(shape) // max(1, e.layers[self.layer].ffn), 0
        return 0, prod(shape)

    def _length(self, axis: Axis, e: Encoder) -> int:
        match axis.kind:
            case "fixed":
                return axis.size
            case "hidden":
                return e.hidden
            case "embedding":
                return e.embedding
            case "heads":
                return e.layers[self.layer].heads * e.head_dim
            case "head":
                return e.layers[self.layer].heads
            case "ffn":
                return e.layers[self.layer].ffn

    def _mask(self, kind: AxisKind, e: Encoder, masks: Masks) -> Tensor | None:
        match kind:
            case "hidden":
                return masks.hidden
            case "heads":
                return masks.heads[self.layer].repeat_interleave(e.head_dim)
            case "head":
                return masks.heads[self.layer]
            case "ffn":
                return masks.ffn[self.layer]
            case _:
                return None


def linear(
    name: str, out: Axis, into: Axis, layer: int = -1, *, bias: bool = True
) -> tuple[Weight, ...]:
    """The weights of a linear map."""
    weight = Weight(f"{name}.weight", (out, into), layer)
    return (weight, Weight(f"{name}.bias", (out,), layer)) if bias else (weight,)


def norm(name: str, axis: Axis, layer: int = -1, *, bias: bool = True) -> tuple[Weight, ...]:
    """Scale and shift of a LayerNorm."""
    weight = Weight(f"{name}.weight", (axis,), layer)
    return (weight, Weight(f"{name}.bias", (axis,), layer)) if bias else (weight,)


def table(name: str, rows: int, axis: Axis, layer: int = -1) -> tuple[Weight, ...]:
    """A lookup table."""
    return (Weight(f"{name}.weight", (fixed(rows), axis), layer),)
