"""Real networks of TensorRT for RTX, which parses and builds without a GPU."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto

from prumux.export.trt.library import RTX
from prumux.optimizer.model.model import Model
from prumux.passes.slice import slice_model
from tests.helpers.checkpoints import config_of
from tests.helpers.factory import multiplexed
from tests.helpers.family_checks import given
from tests.helpers.masking import random_masks
from tests.helpers.tensorrt_list import types_of

FAMILIES = (
    *("bert", "roberta", "distilbert", "electra", "mpnet", "modernbert", "deberta-v2"),
    *("albert", "nomic_bert", "gte", "eurobert"),
)
SHAPES = ("dense", "uneven", "mixed", "tokens")
PRECISIONS = ("fp32", "fp16", "bf16", "int8")
LAYERS = 2
"""Layers of each model. Most of the time of a build goes to the attention of each layer."""
NAMES: dict[int, str] = {
    TensorProto.FLOAT: "FLOAT",
    TensorProto.FLOAT16: "HALF",
    TensorProto.BFLOAT16: "BF16",
    TensorProto.INT8: "INT8",
    TensorProto.INT64: "INT64",
    TensorProto.BOOL: "BOOL",
}
Case = tuple[str, str, str]


def cases(whole: bool) -> list[Case]:
    """All families with all shapes and precisions, or a selection that has every pair."""
    return [
        (family, shape, precision)
        for f, family in enumerate(FAMILIES)
        for s, shape in enumerate(SHAPES)
        for p, precision in enumerate(PRECISIONS)
        if whole or p == (f + s) % len(PRECISIONS)
    ]


def made(folder: Path, family: str, shape: str, **sizes: Any) -> Model:
    """A small model of a family, with unevenly cut layers unless it is dense."""
    head: Any = "TokenClassification" if shape == "tokens" else "SequenceClassification"
    of = config_of(family)
    layers = dict.fromkeys(of.keys() & {"num_hidden_layers", "n_layers"}, LAYERS)
    _, model = given(folder, family, head, **of | layers | sizes)
    if shape != "dense":  # with this seed, each family keeps an attention and an FFN
        masks = random_masks(model.encoder, seed=25, gone=0.3)
        model = slice_model(replace(model, masks=masks))
    return multiplexed(model, n=3, at=1) if shape == "mixed" else model


def wrong_types(graph: Path) -> tuple[list[str], dict[str, int]]:
    """What the parsed network holds in another type than the graph, and its layers by kind.

    Only values that keep the graph's name in the network can be compared.
    """
    trt = RTX.library()
    logger = trt.Logger(trt.Logger.ERROR)
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = trt.Builder(logger).create_network(flags)
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(graph)), parser.get_error(0).desc()
    wanted, wrong, kinds, seen = types_of(onnx.load(graph)), [], dict[str, int](), 0
    for i in range(network.num_layers):
        layer = network.get_layer(i)
        kinds[layer.type.name] = kinds.get(layer.type.name, 0) + 1
        for k in range(layer.num_outputs):
            value = layer.get_output(k)
            if value.name in wanted:
                seen += 1
                if value.dtype.name != NAMES[wanted[value.name]]:
                    wrong.append(f"{value.name}: {value.dtype.name}")
    assert seen > 20
    return wrong, kinds
