"""Apply ONNX Runtime's transformer fusions to a graph. The caller checks the logits.

The tool gets no head count, so it reads each layer's head count from its Reshape. With one
head count for the whole graph, it would fuse pruned layers wrongly, without an error.

Source: https://onnxruntime.ai/docs/performance/transformers-optimization.html
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
    """Fuse a graph into EmbedLayerNormalization, SkipLayerNormalization and BiasGelu nodes.

    Args:
        graph: a graph written by `build`, or its file. It is not changed.
        attention: True = also fuse attention blocks into Attention nodes.

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
    # The default mask format counts ones. This is wrong if padding is not at the end.
    options.attention_mask_format = AttentionMaskFormat.AttentionMask
    with quiet():
        fused: onnx.ModelProto = optimize_by_fusion(proto, "bert", 0, 0, options).model
    return fused


def counts(proto: onnx.ModelProto) -> dict[str, int]:
    """Number of nodes in ONNX Runtime's own domain, by operator type."""
    kinds = Counter(node.op_type for node in proto.graph.node if node.domain == DOMAIN)
    return dict(sorted(kinds.items()))


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress messages of ONNX Runtime's tools; our own checks replace them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
