"""`prumux-bench --engines`: run a model in every kind of engine that this machine supports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import FILE
from prumux.export.runtime.cascade_engine import stage_folders
from prumux.export.runtime.ort import CUDA, OrtEngine, session_options
from prumux.export.runtime.rtx_provider import RTX, add_rtx
from prumux.export.trt.engine import open_plan
from prumux.export.trt.library import FLAVORS, Flavor, flavor_of
from prumux.optimizer.base.devices import device as torch_device
from prumux.optimizer.base.errors import MissingError, PrumuxError
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.registry import parse_target

from .engines import (
    HfEngine,
    OpenedModel,
    exported,
    is_result,
    named,
    of_model,
    open_engine,
    open_result,
)
from .graphs import OpenGraph

TYPED = Path("tensorrt", FILE)
"""Path of a result's fp16 graph. GPUs run it in place of the graph for CPUs."""


@dataclass(frozen=True)
class OpenOptions:
    """Settings for opening engines."""

    threads: int
    device: str
    """Device of torch models."""
    fuse: bool
    """True = an `.onnx` file also gets ONNX Runtime's fusions."""


def open_kinds(
    name: str, label: str, kinds: Sequence[str], options: OpenOptions
) -> tuple[list[OpenedModel], dict[str, str]]:
    """Open a model in engines of these kinds.

    Args:
        name: the model, as for `open_engine`.
        label: the name to show.
        kinds: names in `KINDS`.
        options: settings of the engines.

    Returns:
        The opened models, named `LABEL, KIND`; and the reason for each kind that cannot run.

    Raises:
        PrumuxError: no kind can run the model. The error is the error of the first kind.
    """
    found, not_run = list[OpenedModel](), dict[str, str]()
    first: PrumuxError | None = None
    for kind in kinds:
        try:
            opened = KINDS[kind](name, options)
        except PrumuxError as error:
            first = first or error
            not_run[f"{label}, {kind}"] = str(error).split("\n")[0]
            continue
        found.append(replace(named(opened, f"{label}, {kind}"), side=label))
    if not found and first is not None:
        raise first
    return found, not_run


def _torch(name: str, options: OpenOptions) -> OpenedModel:
    """Open a model in torch eager. A Hugging Face model also runs with torch.compile."""
    path = Path(name)
    if path.suffix in (".onnx", ".plan"):
        raise MissingError("an engine file does not run in torch")
    if path.is_file():
        return open_engine(name, None, options.threads, options.device, compiled=False)
    model = load_model(name)
    auto, device = model.task.auto_class(), torch_device(options.device)
    size = sum(4 * x.numel() for x in model.weights.values())

    def opened(graph: str, compiled: bool) -> OpenedModel:
        return of_model(
            name, model, OpenGraph(graph, HfEngine(name, auto, device, compiled), size)
        )

    eager = opened("eager", compiled=False)
    if model.source.get("model_type") == "prumux":  # torch compiles it again for each shape
        return eager
    return replace(eager, others=(opened("compiled", compiled=True),))


def _onnx(name: str, options: OpenOptions) -> OpenedModel:
    """Open a model in ONNX Runtime on the CPU. Without an engine file, export it in fp32."""
    if not _has_graph(name):
        target = parse_target("onnx{precision=fp32}")
        return exported(name, load_model(name), target, options.threads)
    if is_result(Path(name)):
        return open_result(Path(name), _graph, lambda x: OrtEngine(x, options.threads))
    return open_engine(name, None, options.threads, "cpu", compiled=False, fuse=options.fuse)


def _onnx_cuda(name: str, options: OpenOptions) -> OpenedModel:
    """Open a model in ONNX Runtime on CUDA, in fp32 and fp16."""
    targets = [parse_target(f"onnx{{device=cuda precision={x}}}") for x in ("fp32", "fp16")]
    targets[0].check()
    if _has_graph(name):
        return _on_gpu(name, options.threads, CUDA)
    model = load_model(name)
    full, half = (exported(name, model, x, options.threads) for x in targets)
    return replace(full, others=(*full.others, replace(half, graph="fp16")))


def _onnx_rtx(name: str, options: OpenOptions) -> OpenedModel:
    """Open a model in ONNX Runtime's plug-in for TensorRT for RTX, in fp16."""
    import onnxruntime

    add_rtx(session_options(options.threads), onnxruntime)
    if _has_graph(name):
        return _on_gpu(name, options.threads, RTX)
    model = load_model(name)
    graph = build(model, precision="fp16").SerializeToString()
    engine = OrtEngine(graph, options.threads, (RTX,))
    return of_model(name, model, OpenGraph("", engine, len(graph)))


def _plan(flavor: Flavor, name: str, options: OpenOptions) -> OpenedModel:
    """Open a plan of one flavour of TensorRT. For a model without a plan, build the plan."""
    flavor.check_run()
    path = Path(name)
    if path.suffix == ".onnx":
        raise MissingError(f"a graph is no plan: build one with {flavor.title}")
    if path.suffix == ".plan":
        if flavor_of(path) is not flavor:
            raise MissingError(f"it is a plan of {flavor_of(path).title}")
        return open_engine(name, None, options.threads, options.device, compiled=False)
    if not is_result(path):
        target = parse_target(f"tensorrt{{flavor={flavor.name}}}")
        return exported(name, load_model(name), target, options.threads)
    if not all((x / flavor.plan).exists() for x in stage_folders(path)):
        raise MissingError(f"the folder holds no {flavor.plan}: build it with tensorrt.sh")
    return open_result(path, lambda x: x / flavor.plan, open_plan)


def _has_graph(name: str) -> bool:
    """True for an `.onnx` file, and for an artifact folder.

    Raises:
        MissingError: the engine is a plan.
    """
    path = Path(name)
    if path.suffix == ".plan":
        raise MissingError("a plan does not run in ONNX Runtime")
    return path.suffix == ".onnx" or is_result(path)


def _graph(place: Path) -> Path:
    return place / FILE


def _typed_graph(place: Path) -> Path:
    """The graph for GPUs in the folder of an engine."""
    typed = place / TYPED
    return typed if typed.exists() else place / FILE


def _on_gpu(name: str, threads: int, provider: str) -> OpenedModel:
    """Open the graph of a file or an artifact folder on a GPU."""
    path = Path(name)
    if not is_result(path):
        engine = OrtEngine(path, threads, (provider,))
        return replace(open_engine(name, None, threads, "cpu", compiled=False), engine=engine)
    return open_result(path, _typed_graph, lambda x: OrtEngine(x, threads, (provider,)))


KINDS: dict[str, Callable[[str, OpenOptions], OpenedModel]] = {
    "torch": _torch,
    "onnx": _onnx,
    "onnx-cuda": _onnx_cuda,
    "onnx-rtx": _onnx_rtx,
    **{x.engine: partial(_plan, x) for x in FLAVORS},
}
"""Functions that open a model, by the engine's name in `--engines`."""
