"""Open the engine of an artifact folder: a TensorRT plan, an ONNX graph or the weights."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from prumux.export.graph.graph_file import FILE
from prumux.export.trt.engine import PLANS, open_plan
from prumux.optimizer.base.errors import MissingError, ModelError, UsageError
from prumux.optimizer.base.paths import local_path
from prumux.optimizer.model.artifact import load_artifact
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.pipeline.target import Engine

from .cascade_engine import FileEngine, open_stages, stage_folders
from .ort import CUDA, OrtEngine, gpu_providers
from .torch_engine import TorchEngine
from .typed_graph import TypedGraphEngine


def artifact_path(folder: Any) -> Path:
    """Check the folder that a caller gave, and return its path.

    Raises:
        UsageError: `folder` is no path, or not UTF-8.
        ModelError: no folder can have this path, or prumux-opt has not finished the folder.
    """
    if not isinstance(folder, str | Path) or not str(folder).strip():
        raise UsageError(f"the folder is {folder!r}: write, say, prumux.load('my-prumux')")
    try:
        path = local_path(folder)
        unfinished = (path / ".resume" / "final").exists() and path.is_dir()
    except (OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"'{folder!s:.80}' cannot be a folder: {error}"[:300]) from error
    if unfinished:
        raise ModelError(f"'{path}' is not finished; repeat its prumux-opt with --resume")
    return path


def read_config(path: Path) -> dict[str, Any]:
    """Read the `config.json` of an artifact folder.

    Raises:
        ModelError: the path is no folder, or prumux-opt did not write the folder.
    """
    if not path.is_dir():
        found = "is a file" if path.exists() else "does not exist"
        raise ModelError(
            f"'{path}' {found}; prumux.load takes a folder that prumux-opt wrote\n"
            + (f"call prumux.load('{path.parent}')" if path.exists() else "check the path")
        )
    config = read_json(path / "config.json")
    if config.get("model_type") != "prumux":
        raise ModelError(
            f"'{path}' holds a '{config.get('model_type')}' model, not an optimised one\n"
            f"make one: prumux-opt {path} --budget 2%"
        )
    return config


def open_artifact_engine(path: Path, threads: int, device: str) -> Engine:
    """Open the first engine of an artifact folder that can run here.

    Engines are tried in this order:

    1. `model.plan` and `model.rtx.plan`, which need their TensorRT and a GPU;
    2. `model.onnx`, which needs ONNX Runtime;
    3. the torch module.

    On a CPU, a graph beside a plan is rounded to its types, and so gives the certified
    answers. A cascade of two engines opens both, see `cascade_engine.py`.

    Args:
        path: the artifact folder.
        threads: CPU threads of one run in ONNX Runtime; 0 = ONNX Runtime's choice.
        device: `cpu`, `cuda`, or `auto`: a GPU if ONNX Runtime can use one and the graph is
            not int8.

    Raises:
        MissingError: `device` is `cuda`, and ONNX Runtime cannot use a GPU.
        ModelError: a file is damaged.
    """
    try:
        return open_stages(path, lambda place: _open_file(place, threads, device))
    except MissingError:
        graphs = (x / FILE for x in stage_folders(path))
        if device == "cuda" and all(x.exists() for x in graphs):
            raise
        return TorchEngine(load_artifact(path))


def plans_of(path: Path) -> list[Path]:
    """The plans in a folder, in order of preference."""
    return [path / x for x in PLANS if (path / x).exists()]


def _open_file(path: Path, threads: int, device: str) -> FileEngine:
    """Open a plan or the graph in a folder.

    Raises:
        MissingError: there is neither a plan nor a graph that can run here.
        ModelError: a file is damaged.
    """
    plans = plans_of(path)
    for plan in plans:
        if device != "cpu":
            with suppress(MissingError):
                return open_plan(plan)
    graph = path / FILE
    if device == "cuda" and graph.exists():
        return OrtEngine(graph, threads, (CUDA,))
    return _open_graph(graph, threads, device, typed=bool(plans))


def _open_graph(graph: Path, threads: int, device: str, typed: bool) -> OrtEngine:
    """Open a graph in ONNX Runtime: on a GPU if one can be used and the graph is not int8.

    Raises:
        MissingError: there is no graph, or no ONNX Runtime.
        ModelError: the graph is damaged.
    """
    if not graph.exists():
        raise MissingError(f"there is no '{graph}'")
    providers = () if device == "cpu" else gpu_providers()
    if typed and not providers:
        return TypedGraphEngine(graph, threads)
    engine = OrtEngine(graph, threads)
    if not providers or engine.describe()["precision"] == "int8":
        return engine
    return OrtEngine(graph, threads, providers)
