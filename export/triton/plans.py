"""The Triton model repository of a TensorRT result: one engine, or two of a cascade."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prumux.export.graph.graph_file import FILE
from prumux.export.trt.library import CLASSIC
from prumux.export.trt.stages import engine_stages
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model

from .repository import FOLDER, SecondEngine, Serving, serving_point, write_bundle


def write_plans(model: Model, workload: Sequence[Batch], folder: Path) -> None:
    """Write `triton/` around the plans of a result.

    Triton has no backend for TensorRT for RTX. If a classic plan is missing, it serves the
    typed graphs in place of the plans.

    Args:
        model: the model of the result.
        workload: batches at the serving point.
        folder: the result, with its graphs and plans.
    """
    stages = engine_stages(model, workload)
    shapes = stages[0].profiles
    rows = max(x.rows[2] for x in shapes)
    serving = Serving(
        max_batch=rows,
        length=max(b.input_ids.shape[1] for b in workload),
        profiles=sum(x.rows[2] == rows for x in shapes),
    )
    files = [x.folder(folder) / CLASSIC.plan for x in stages]
    if not all(x.exists() for x in files):
        serving = serving_point(workload)
        files = [x.folder(folder) / FILE for x in stages]
    second = None if model.second is None else SecondEngine(files[1], model.second)
    place = folder / FOLDER
    write_bundle(model.encoder, model.task, files[0], place, serving, second=second)
