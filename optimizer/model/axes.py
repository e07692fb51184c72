"""Weights with typed axes.

The type of an axis determines its length and the mask that slices it. The axes of the weights
determine the expected shapes, the cuts of the pass `slice`, the number of parameters of a
unit, and the checks of a loader. Linear maps are [out, in], as in torch.
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
"""Kinds of axes that masks slice and that `mux{units=apart}` repeats for every slot."""


@dataclass(frozen=True)
class Axis:
    """One axis of a weight.

    The kinds are:

    - `fixed`: `size` entries.
    - `hidden`: one entry for each hidden dimension.
    - `embedding`: the width of the embedding tables. These entries are hidden dimensions,
      unless a linear map follows.
    - `heads`: K entries for each head of the weight's layer.
    - `head`: one entry for each head of the weight's layer.
    - `ffn`: one entry for each FFN unit of the weight's layer.
    """

    kind: AxisKind
    size: int = 0


HIDDEN = Axis("hidden")
EMBEDDING = Axis("embedding")
HEADS = Axis("heads")
HEAD = Axis("head")
FFN = Axis("ffn")


def fixed(size: int) -> Axis:
    """An axis that no mask slices."""
    return Axis("fixed", size)


@dataclass(frozen=True)
class Weight:
    """One tensor: its name, axes and layer. `layer` is -1 for weights outside of layers."""

    name: str
    axes: tuple[Axis, ...]
    layer: int = -1

    def kinds(self, e: Encoder) -> tuple[AxisKind, ...]:
        """The kinds of the axes in an encoder. `embedding` becomes `hidden` or `fixed`."""
        width: AxisKind = "fixed" if e.projected else "hidden"
        return tuple(width if x.kind == "embedding" else x.kind for x in self.axes)

    def shape(self, e: Encoder) -> tuple[int, ...]:
        """The length of each axis."""
        return tuple(self._length(axis, e) for axis in self.axes)

    def kept(self, e: Encoder, masks: Masks) -> tuple[Tensor | None, ...]:
        """For each axis, a bool mask of the kept entries; None if no mask slices the axis."""
        return tuple(self._mask(kind, e, masks) for kind in self.kinds(e))

    def per_unit(self, e: Encoder) -> tuple[int, int]:
        """Number of parameters for each head or FFN unit, and number of all others."""
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
    """The weight, and optionally the bias, of a linear map."""
    weight = Weight(f"{name}.weight", (out, into), layer)
    return (weight, Weight(f"{name}.bias", (out,), layer)) if bias else (weight,)


def norm(name: str, axis: Axis, layer: int = -1, *, bias: bool = True) -> tuple[Weight, ...]:
    """The scale, and optionally the shift, of a LayerNorm."""
    weight = Weight(f"{name}.weight", (axis,), layer)
    return (weight, Weight(f"{name}.bias", (axis,), layer)) if bias else (weight,)


def table(name: str, rows: int, axis: Axis, layer: int = -1) -> tuple[Weight, ...]:
    """The weight of a lookup table."""
    return (Weight(f"{name}.weight", (fixed(rows), axis), layer),)
