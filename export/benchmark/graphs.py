"""The graphs of one model: plain, and with ONNX Runtime's fusions. The fastest is timed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prumux.export.graph import fusion as fusion_tool
from prumux.export.graph.graph_file import is_large
from prumux.export.graph.parity import TOLERANCES
from prumux.export.runtime.fusion_choice import FUSED
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import PrumuxError
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.target import Engine, Target

PLAIN = "plain"
TRIED_ROWS, TRIED_TOKENS = 4, 16
TRIED_IDS = 30
"""A graph of the user is tested with token ids below this: every vocabulary has them."""


@dataclass(frozen=True, eq=False)
class OpenGraph:
    """A graph of a model, open in its engine."""

    name: str
    engine: Engine
    size_bytes: int


@dataclass(frozen=True, eq=False)
class ModelGraphs:
    """All graphs of a model that run, and the reasons why other graphs do not run."""

    graphs: list[OpenGraph]
    not_run: dict[str, str] = field(default_factory=dict)


def export_all(
    model: Model, target: Target, threads: int, keep: Path | None = None
) -> ModelGraphs:
    """Export a model to a target. `fusion=auto` gives a plain graph and one per fusion.

    Args:
        model: the model.
        target: the target.
        threads: CPU threads of one run.
        keep: folder to keep the files in, one folder per graph; None = delete them.

    Raises:
        PrumuxError: the plain graph cannot be exported.
    """
    if getattr(target, "fusion", None) != "auto" or not target.exact:
        return ModelGraphs([_exported("", model, target, threads, keep)])
    plain: Any = target  # a dataclass with the field `fusion`
    unfused = replace(plain, fusion="none")
    found = ModelGraphs([_exported(PLAIN, model, unfused, threads, keep)])
    for fusion in FUSED:
        name = f"fusion={fusion}"
        try:
            fused = replace(plain, fusion=fusion)
            found.graphs.append(_exported(name, model, fused, threads, keep))
        except PrumuxError as error:
            found.not_run[name] = _first_line(error)
    return found


def _exported(
    name: str, model: Model, target: Target, threads: int, keep: Path | None
) -> OpenGraph:
    """Export a model to a temporary folder or a folder in `keep`, and open the engine."""
    e = model.encoder
    length = min(TRIED_TOKENS, e.positions // 2)
    ids = np.random.default_rng(0).integers(e.vocab // 2, e.vocab, (TRIED_ROWS, length))
    rows = Ragged.of(ids)
    types = Ragged.of(np.zeros_like(ids)) if e.token_types else None
    some = Encoded(rows, types, None, e.pad_id)
    work = workload(some, TRIED_ROWS, None)
    ctx = Context(fit=some, workload=work, dense=model, target=target, threads=threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep / (name or "engine") if keep else Path(temporary)
        emitted = target.emit(model, ctx, folder)
        size = sum((folder / x).stat().st_size for x in emitted.files)
        return OpenGraph(name, target.engine(folder, threads), size)


def fuse_file(
    path: Path, plain: OrtEngine, open_graph: Callable[[bytes], OrtEngine]
) -> ModelGraphs:
    """Apply ONNX Runtime's fusions to a graph of the user.

    Args:
        path: the `.onnx` file.
        plain: the same file in its engine; a fused graph must give its logits.
        open_graph: opens a serialized graph on the same provider.

    Returns:
        The given graph, then its fused graphs. A given graph that is in a lower precision,
        above 2 GB or fused already gets no fused graphs.
    """
    found = ModelGraphs([OpenGraph(PLAIN, plain, path.stat().st_size)])
    proto = onnx.load(path)
    if plain.describe()["precision"] != "fp32" or is_large(proto) or fusion_tool.counts(proto):
        return ModelGraphs([replace(found.graphs[0], name="")])
    inputs = _random_inputs(plain)
    try:
        expected = plain.run(inputs)
    except Exception as error:  # timing reports the error to the user
        found.not_run["fusions"] = _first_line(error)
        return found
    limit = TOLERANCES["fp32"] * max(1.0, float(np.abs(expected).max(initial=0.0)))
    for fusion in FUSED:
        name = f"fusion={fusion}"
        try:
            fused = fusion_tool.fuse(proto, attention=fusion == "all")
            engine = open_graph(fused.SerializeToString())
            off = float(np.abs(engine.run(inputs) - expected).max(initial=0.0))
        except Exception as error:  # the tool raises anything from KeyError to AssertionError
            found.not_run[name] = _first_line(error)
            continue
        if off <= limit:
            found.graphs.append(OpenGraph(name, engine, fused.ByteSize()))
        else:
            found.not_run[name] = f"logits differ by up to {off:.3g}, the limit is {limit:.3g}"
    return found


def _random_inputs(engine: OrtEngine) -> dict[str, Any]:
    """Four rows of random tokens; the last three rows are padded."""
    ids = np.random.default_rng(0).integers(1, TRIED_IDS, (TRIED_ROWS, TRIED_TOKENS))
    lengths = TRIED_TOKENS - 3 * np.arange(TRIED_ROWS)
    mask = (np.arange(TRIED_TOKENS) < lengths[:, None]).astype(np.int64)
    every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    return {name: every[name] for name in engine.names if name in every}


def _first_line(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:200]
    return text if isinstance(error, PrumuxError) else f"{type(error).__name__} {text}".strip()
