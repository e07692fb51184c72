"""ONNX Runtime's transformer fusions, kept quiet and harmless. The caller checks the numbers.

No head count is ever passed in: every layer's own count is read from its Reshape. With a
global count the tool fuses pruned layers wrongly and says nothing.
"""

from __future__ import annotations

import io
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import onnx

from prumux.optimizer.base.errors import MissingError

DOMAIN = "com.microsoft"


def fuse(graph: onnx.ModelProto | Path, attention: bool) -> onnx.ModelProto:
    """A new graph with EmbedLayerNormalization, SkipLayerNormalization and BiasGelu nodes.

    Args:
        graph: a graph written by `build`, or its file; it is left as it is.
        attention: whether attention blocks become Attention nodes as well.

    Raises:
        MissingError: ONNX Runtime is not installed.
    """
    try:
        from onnxruntime.transformers.fusion_options import AttentionMaskFormat, FusionOptions
        from onnxruntime.transformers.optimizer import optimize_by_fusion
    except ImportError as error:
        raise MissingError(
            "fusions need ONNX Runtime: pip install 'prumux[cpu]'\n"
            "or export with 'onnx{fusion=none}'"
        ) from error
    proto = onnx.ModelProto()
    proto.CopyFrom(onnx.load(graph) if isinstance(graph, Path) else graph)
    options = FusionOptions("bert")
    options.enable_attention = attention
    # The default mask format counts ones, which is only right for padding at the end.
    options.attention_mask_format = AttentionMaskFormat.AttentionMask
    with quiet():
        fused: onnx.ModelProto = optimize_by_fusion(proto, "bert", 0, 0, options).model
    return fused


def counts(proto: onnx.ModelProto) -> dict[str, int]:
    """How many nodes of each of ONNX Runtime's own kinds a graph has."""
    kinds = Counter(node.op_type for node in proto.graph.node if node.domain == DOMAIN)
    return dict(sorted(kinds.items()))


@contextmanager
def quiet() -> Iterator[None]:
    """The tool logs warnings and prints; what it says is replaced by checks of our own."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
