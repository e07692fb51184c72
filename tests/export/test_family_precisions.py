"""Every family in ONNX Runtime: dense, cut, mixed and with a class a word, in each precision.

bf16 and the int8 of TensorRT are in test_tensorrt_rtx.py, with the engines that are built.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prumux.export.graph.graph import build
from prumux.export.graph.int8 import lower, lowered_names
from prumux.export.runtime.ort import OrtEngine
from tests.helpers.factory import random_batch
from tests.helpers.family_checks import onnx_logits
from tests.helpers.masking import logits, worst
from tests.helpers.rtx import FAMILIES, SHAPES, made

WHOLE = os.environ.get("PRUMUX_MATRIX") == "1"
PRECISIONS = ("fp32", "fp16", "int8")
OPSETS = 17, 23
CASES = [
    (family, shape, precision, OPSETS[(f + s + p) % 2])
    for f, family in enumerate(FAMILIES)
    for s, shape in enumerate(SHAPES)
    for p, precision in enumerate(PRECISIONS)
    if WHOLE or p == (f + s) % len(PRECISIONS)
]


@pytest.mark.parametrize(("family", "shape", "precision", "opset"), CASES)
def test_onnx_runtime_answers_as_torch(
    family: str, shape: str, precision: str, opset: int, tmp_path: Path
) -> None:
    spread = 0.1 if precision == "int8" else 0.2  # of weights: gated units are products
    distil = {"dim": 64, "hidden_dim": 64, "n_heads": 4}
    wide = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4}
    sizes = distil if family == "distilbert" else wide
    model = made(tmp_path, family, shape, spread=spread, **sizes)
    batch = random_batch(model, rows=6, length=14)
    wanted = logits(model, batch)
    if precision == "fp16":
        assert worst(onnx_logits(model, batch, opset=opset, precision="fp16"), wanted) < 0.05
        return
    assert worst(onnx_logits(model, batch, opset=opset), wanted) < 1e-4
    if precision == "int8":
        low = lower(build(model, opset))
        assert lowered_names(low)
        found = torch.as_tensor(OrtEngine(low.SerializeToString(), 1).run(batch.inputs()))
        real = torch.as_tensor(batch.attention_mask) > 0
        off = (found if model.encoder.pooled else found[real]) - wanted
        assert float(off.abs().mean()) < 0.1 * float(wanted.abs().mean())
