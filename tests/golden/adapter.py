"""All that the golden files know of prumux's insides.

When modules, classes or weights are renamed, this file changes and no other of this folder.
Weights have the names of 0.1.0 on the golden side: `THEIRS` translates where they differ.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from prumux.export.graph.graph import build, input_names
from prumux.export.graph.int8 import lower
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.environment import device, int8_saturates, versions
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.cost import count
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.source import load_model
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import parse_target
from prumux.optimizer.run import run as runs

Compiled = Model
"""What passes take and give, whatever its class is called."""
Arrays = Mapping[str, NDArray[Any]]
Precision = Literal["fp32", "fp16", "int8", "int8-reduced"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8", "int8-reduced")
"""The last with `reduce_range`: weights of seven bits."""
THEIRS: dict[str, str] = {}
"""The name that a weight has today, where it is not the one of 0.1.0."""


def read(folder: Path) -> Model:
    """The model of a Hugging Face folder."""
    return load_model(str(folder))


def inputs(model: Model, given: Arrays) -> dict[str, NDArray[Any]]:
    """Of these arrays what the model asks for."""
    return {name: given[name] for name in input_names(model.encoder)}


def pruned(
    model: Model,
    heads: tuple[tuple[int, ...], ...],
    ffn: tuple[NDArray[np.bool_], ...],
    hidden: NDArray[np.bool_],
) -> Model:
    """The model with these masks, not cut out yet."""
    masks = Masks(
        heads=tuple(torch.tensor(x, dtype=torch.bool) for x in heads),
        ffn=tuple(torch.as_tensor(x) for x in ffn),
        hidden=torch.as_tensor(hidden),
    )
    return replace(model, masks=masks)


def passed(model: Model, text: str, given: Arrays) -> Model:
    """The model after a pipeline, with these rows for all that a pass consults."""
    batch = Batch(
        rows=np.arange(len(given["input_ids"])),
        input_ids=given["input_ids"],
        attention_mask=given["attention_mask"],
        token_type_ids=given["token_type_ids"] if model.encoder.token_types else None,
        labels=None,
    )
    real = batch.attention_mask == 1
    rows = Encoded(
        ids=_unpadded(batch.input_ids, real),
        types=None if batch.token_type_ids is None else _unpadded(batch.token_type_ids, real),
        labels=None,
        pad_id=model.encoder.pad_id,
    )
    ctx = Context(fit=rows, workload=(batch,), dense=model, train=rows, select=rows)
    return Pipeline.parse(text).run(model, ctx)


def _unpadded(x: NDArray[Any], real: NDArray[np.bool_]) -> Ragged:
    return Ragged.of(row[kept] for row, kept in zip(x, real, strict=True))


def changed(
    model: Model, change: Callable[[str, NDArray[np.float32]], NDArray[np.float32]]
) -> Model:
    """The model with every weight replaced by what `change` makes of its name and value."""
    ours = {theirs: name for name, theirs in THEIRS.items()}
    made = {
        k: torch.as_tensor(change(ours.get(k, k), x.numpy())) for k, x in model.weights.items()
    }
    return replace(model, weights=made)


def weights(model: Model) -> dict[str, NDArray[np.float32]]:
    """Weights by the names of 0.1.0."""
    ours = {theirs: name for name, theirs in THEIRS.items()}
    return {ours.get(k, k): x.numpy() for k, x in model.weights.items()}


def shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """The shapes that the sizes call for, by the names of 0.1.0."""
    ours = {theirs: name for name, theirs in THEIRS.items()}
    return {ours.get(k, k): x for k, x in expected_shapes(model.encoder).items()}


def sizes(model: Model) -> dict[str, Any]:
    """Widths of the layers and of the residual stream."""
    e = model.encoder
    return {
        "heads": [x.heads for x in e.layers],
        "ffn": [x.ffn for x in e.layers],
        "hidden": e.hidden,
        "head_dim": e.head_dim,
        "embedding": e.embedding,
    }


def cost(model: Model, length: int) -> dict[str, int]:
    """Parameters, bytes and multiply-adds of a row of so many tokens."""
    return count(model.encoder, length).to_json()


def torch_logits(model: Model, given: Arrays) -> NDArray[Any]:
    """Logits of the torch module."""
    return run(EncoderModule(model).eval(), inputs(model, given))


def graph(model: Model, precision: Precision) -> onnx.ModelProto:
    """The model as an ONNX graph, int8 as if on a processor that needs it so."""
    if precision in ("fp32", "fp16"):
        return build(model, precision="fp16" if precision == "fp16" else "fp32")
    reduced = precision == "int8-reduced"
    with patch("prumux.export.graph.int8.int8_saturates", lambda: reduced):
        return lower(build(model))


def machine() -> dict[str, Any]:
    """What rounding depends on: the processor's instructions and the libraries' versions."""
    named = ("torch", "onnx", "onnxruntime", "numpy")
    found = {k: device()[k] for k in ("cpu", "cpu_isa")}
    return found | {k: versions().get(k, "") for k in named}


def overflows() -> bool:
    """Whether int8 products of eight bits overflow on this processor."""
    return int8_saturates()


def onnx_logits(proto: onnx.ModelProto, given: Arrays, threads: int = 1) -> NDArray[Any]:
    """Logits of ONNX Runtime."""
    wanted = {x.name: given[x.name] for x in proto.graph.input}
    return OrtEngine(proto.SerializeToString(), threads=threads).run(wanted)


def parsed(text: str) -> dict[str, Any]:
    """A pipeline as it is printed and its passes, or the error."""
    try:
        found = Pipeline.parse(text)
    except PrumuxError as error:
        return {"error": str(error), "code": error.exit_code}
    return {"text": str(found), "passes": [_options(x) for x in found.passes]}


def space(text: str) -> dict[str, Any]:
    """The pipelines of a search space as they are printed, or the error."""
    try:
        return {"texts": [str(x) for x in Pipeline.space(text)]}
    except PrumuxError as error:
        return {"error": str(error), "code": error.exit_code}


def target(text: str) -> dict[str, Any]:
    """A target as it is printed and its options, or the error."""
    try:
        found = parse_target(text)
    except PrumuxError as error:
        return {"error": str(error), "code": error.exit_code}
    return {"text": str(found), "passes": [_options(found)]}


def _options(of: Any) -> dict[str, Any]:
    found = {x.name: getattr(of, x.name) for x in fields(of)}
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}
    assert all(not isinstance(x, float) or math.isfinite(x) for x in plain.values())
    return {"name": of.name, "options": plain}


def list_passes() -> str:
    """What `--list-passes` prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["--list-passes"]) == 0
    return out.getvalue()


def optimize(model: Path, out: Path, **options: Any) -> dict[str, Any]:
    """report.json of a run of one thread in which no clock decides what is dropped."""
    with (
        patch("prumux.optimizer.run.packaging._slower", lambda *_: False),
        patch("prumux.optimizer.run.inputs.cpu_threads", lambda: 1),
    ):
        return dict(runs.optimize(model, out=out, **options).report)
