"""Collect the nodes and constants of an ONNX graph, in the order of writing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from prumux.optimizer.base.errors import VerifyError

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
Precision = Literal["fp32", "fp16", "bf16"]
_TYPES: dict[Precision, tuple[int, torch.dtype]] = {
    "fp32": (TensorProto.FLOAT, torch.float32),
    "fp16": (TensorProto.FLOAT16, torch.float16),
    "bf16": (TensorProto.BFLOAT16, torch.bfloat16),
}


class GraphBuilder:
    """Nodes and constants of a graph, in the order of writing.

    The builder chooses the type of the graph's floats, so its callers need not know this type.
    """

    def __init__(
        self,
        weights: Mapping[str, Tensor],
        precision: Precision = "fp32",
        portable: bool = False,
    ) -> None:
        """Make an empty builder.

        Args:
            weights: float32 tensors by name.
            precision: the type of all float constants and values.
            portable: True = use only operators and types that TensorRT's ONNX parser
                documents.
        """
        self.weights = weights
        self.element, self._dtype = _TYPES[precision]
        """The ONNX element type of floats."""
        self.low = precision != "fp32"
        """True for fp16 and bf16. Sums and products must then stay small, and each delicate
        step must be one node."""
        self.portable = portable or self.low
        self._precision = precision
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def op(self, kind: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Append a node. Its only output has the node's name."""
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer, unless one of this name exists. Returns the name."""
        if name not in self._known:
            self._known.add(name)
            self.constants.append(numpy_helper.from_array(np.asarray(value, order="C"), name))
        return name

    def floats(self, name: str, value: Tensor) -> str:
        """Add an initializer in the builder's float type, like `constant`.

        Raises:
            VerifyError: a value is outside the range of the type.
        """
        if not self.low:
            return self.constant(name, value.numpy())
        if name not in self._known:
            self._known.add(name)
            low = value.to(self._dtype).contiguous()
            self._check_range(name, value, low)
            raw = low.view(torch.int16).numpy().tobytes()
            made = helper.make_tensor(name, self.element, low.shape, raw, raw=True)
            self.constants.append(made)
        return name

    def _check_range(self, name: str, value: Tensor, low: Tensor) -> None:
        if not bool((low.isfinite() | ~value.isfinite()).all()):
            raise VerifyError(
                f"weight '{name}' holds values up to {float(value.abs().max()):.3g}, "
                f"{self._precision} ends at {torch.finfo(self._dtype).max:.3g}\n"
                "use precision=fp32, or on a GPU tensorrt{precision=bf16}, which has its range"
            )

    def number(self, value: float) -> str:
        """Add a float scalar."""
        return self.floats(f"float.{value:.9g}", torch.tensor(value, dtype=torch.float32))

    @property
    def lowest(self) -> float:
        """The bias that hides an attention score. In fp16 and bf16, their sum stays finite."""
        lowest = torch.finfo(self._dtype).min
        return lowest / 2 if self.low else lowest

    def count(self, name: str, x: str, axis: str) -> str:
        """Running sum of an int64 value. In a portable graph it is exact up to 2 ** 24."""
        if not self.portable:
            return self.op("CumSum", name, x, axis)
        x = self.op("Cast", f"{name}.float", x, to=TensorProto.FLOAT)
        x = self.op("CumSum", f"{name}.sum", x, axis)
        return self.op("Cast", name, x, to=TensorProto.INT64)

    def integers(self, *values: int) -> str:
        """Add an int64 vector."""
        text = "x".join(map(str, values))
        return self.constant(f"int.{text}", np.array(values, np.int64))

    def integer(self, value: int) -> str:
        """Add an int64 scalar."""
        return self.constant(f"index.{value}", np.array(value, np.int64))

    def weight(self, name: str) -> str:
        """Add a weight without changes."""
        return self.floats(name, self.weights[name])

    def linear(self, name: str, x: str, node: str = "", factor: float = 1.0) -> str:
        """Linear map, [..., in] -> [..., out]. The node's default name is `name`.

        A `factor` of the result is multiplied into the weights. The changed weights are stored
        under another name. Without a bias, the output of the product has the node's name.
        """
        weight, bias = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        stored = name
        if factor != 1:
            weight, stored = weight * factor, f"{name}.scaled"
            bias = None if bias is None else bias * factor
        node = node or name
        transposed = self.floats(f"{stored}.weight", weight.T)
        if bias is None:
            product = helper.make_node("MatMul", [x, transposed], [node], f"{node}.matmul")
            self.nodes.append(product)
            return node
        y = self.op("MatMul", f"{node}.matmul", x, transposed)
        return self.op("Add", node, y, self.floats(f"{stored}.bias", bias))

    def norm(self, name: str, x: str, eps: float, node: str = "") -> str:
        """LayerNorm over the last axis. Names are as in `linear`."""
        parts = self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias")
        return self.normalised(node or name, name, x, *parts, eps=eps)

    def rms_norm(self, name: str, x: str, eps: float) -> str:
        """RMSNorm over the last axis, x / sqrt(mean x^2 + eps) * weight (+ bias).

        In fp16 and bf16 the mean of squares is computed in float32, as are LayerNorm's
        statistics.
        """
        wide = self.op("Cast", f"{name}.float", x, to=TensorProto.FLOAT) if self.low else x
        power = self.op("Mul", f"{name}.square", wide, wide)
        weight = self.weights[f"{name}.weight"]
        total = self.op("ReduceSum", f"{name}.power", power, self.integers(-1), keepdims=1)
        count = self.constant(f"count.{len(weight)}", np.array(len(weight), np.float32))
        least = self.constant(f"eps.{eps:g}", np.array(eps, np.float32))
        mean = self.op("Div", f"{name}.mean", total, count)
        root = self.op("Sqrt", f"{name}.root", self.op("Add", f"{name}.damped", mean, least))
        y = self.op("Div", f"{name}.unit", wide, root)
        if self.low:
            y = self.op("Cast", f"{name}.low", y, to=self.element)
        y = self.op("Mul", f"{name}.scaled", y, self.weight(f"{name}.weight"))
        if f"{name}.bias" not in self.weights:
            return y
        return self.op("Add", name, y, self.weight(f"{name}.bias"))

    def normalised(
        self,
        node: str,
        stored: str,
        x: str,
        weight: Tensor,
        bias: Tensor | None,
        *,
        eps: float,
    ) -> str:
        """LayerNorm with a given scale and shift, stored under the name `stored`."""
        names = [self.floats(f"{stored}.weight", weight)]
        if bias is not None:
            names.append(self.floats(f"{stored}.bias", bias))
        if self.low:  # the operator's default: statistics are float32 for every type
            return self.op(
                "LayerNormalization", node, x, *names, axis=-1, epsilon=eps, stash_type=1
            )
        return self.op("LayerNormalization", node, x, *names, axis=-1, epsilon=eps)

    def first(self, name: str, x: str) -> str:
        """Slice of the first position. Its axis is kept."""
        zero, one = self.integers(0), self.integers(1)
        return self.op("Slice", name, x, zero, one, one)

    def slot(self, name: str, x: str, i: int, n: int) -> str:
        """Slice of every n-th row, from row i on."""
        ends = self.integers(i), self.integers(2**62), self.integers(0), self.integers(n)
        return self.op("Slice", name, x, *ends)
