"""Typed graphs: every value has the type that it has in the engine.

TensorRT takes the precision of an engine from the types of its graph.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import onnx

from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.model import Model

from .builder import Precision
from .graph import build
from .qdq import products, quantize, quantized
from .sensitivity import divergence, worst

if TYPE_CHECKING:
    from prumux.optimizer.pipeline.context import Context

CALIBRATION_ROWS = 512
"""Number of fit rows for calibrating int8 activations."""


@dataclass(frozen=True)
class GraphTypes:
    """The types of a graph."""

    precision: Literal["fp16", "bf16", "fp32", "int8"]
    """int8 = matrix products in int8, the rest in fp16."""
    keep: tuple[str, ...] = ()
    """Linear maps that int8 leaves in fp16."""
    spare: float = 0
    """Share of int8's estimated error to avoid by leaving more maps in fp16."""

    @property
    def floats(self) -> Precision:
        """Type of the values that are not quantised."""
        return "fp16" if self.precision == "int8" else self.precision

    def graph(self, model: Model, ctx: Context) -> onnx.ModelProto:
        """Build the graph of a model without a second stage."""
        if self.precision != "int8":
            return build(model, precision=self.floats, portable=True)
        proto, rows, kept = self._calibrated(model, ctx)
        if not self.spare:
            return proto
        plain = build(model, precision=self.floats, portable=True)
        return quantize(plain, rows, (*kept, *self._spared(model, proto, ctx)))

    def kept(self, model: Model, ctx: Context) -> tuple[str, ...]:
        """The maps that int8 leaves in fp16: those of `keep`, and the most sensitive ones."""
        proto, _, kept = self._calibrated(model, ctx)
        return tuple(dict.fromkeys((*kept, *self._spared(model, proto, ctx))))

    def _spared(self, model: Model, proto: onnx.ModelProto, ctx: Context) -> tuple[str, ...]:
        names = [x.removesuffix(".matmul") for x in quantized(proto)]
        return worst(divergence(model, names, ctx), most=math.inf, share=self.spare)

    def _calibrated(
        self, model: Model, ctx: Context
    ) -> tuple[onnx.ModelProto, list[Any], list[str]]:
        """The int8 graph, its calibration rows, and the maps of `keep` that the graph has."""
        proto = build(model, precision=self.floats, portable=True)
        some = ctx.fit.take(range(min(len(ctx.fit), CALIBRATION_ROWS)))
        rows = [batch.inputs() for batch in groups_of(some, 32, model.encoder.slots)]
        there = set(products(proto))  # pruning may have removed a branch that `keep` names
        kept = [x for x in self.keep if f"{x}.matmul" in there or x in there]
        return quantize(proto, rows, kept), rows, kept
