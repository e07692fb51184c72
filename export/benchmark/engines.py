"""Open models to time: artifact folders, ONNX graphs, plans and Hugging Face models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.runtime.cascade_engine import FileEngine, open_stages, stage_folders
from prumux.export.runtime.engine_match import check_belongs
from prumux.export.runtime.ort import CUDA, OrtEngine, gpu_providers
from prumux.export.runtime.torch_engine import TorchEngine
from prumux.export.trt.engine import PLANS, open_plan
from prumux.optimizer.base.devices import device as torch_device
from prumux.optimizer.base.paths import check_name
from prumux.optimizer.data.predict import Arrivals
from prumux.optimizer.model.artifact import from_config
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.target import Engine, Target
from prumux.optimizer.tasks.task import Task

from .graphs import OpenGraph, export_all, fuse_file

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANY_VOCAB = 1000
"""Random rows use token ids below this number. All known vocabularies are larger."""
FILES = (*PLANS, "model.onnx")
"""Engine files of an artifact folder, in order of preference."""


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """An engine, and the sizes and the tokenizer for making its inputs."""

    name: str
    engine: Engine
    vocab: int
    token_types: bool
    size_bytes: int
    tokenizer: PreTrainedTokenizerBase | None = None
    encoder: Encoder | None = None
    task: Task | None = None
    graph: str = ""
    """Name of the graph, such as `plain` or `fusion=all`, if the model has several graphs."""
    others: tuple[OpenedModel, ...] = ()
    """The same model in its other graphs. Only the fastest graph is timed."""
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Names of graphs that could not be made, each with the reason."""
    side: str = ""
    """The model's name, set if the model runs in several kinds of engine."""

    @property
    def slots(self) -> int:
        """Number of rows that share a forward pass."""
        return int(getattr(self.engine, "slots", 1))


def open_engine(  # noqa: PLR0917 - the last have defaults
    name: str,
    target: Target | None,
    threads: int,
    device: str,
    compiled: bool,
    fuse: bool = False,
    keep: Path | None = None,
) -> OpenedModel:
    """Open a model by the name that the user gave.

    Args:
        name: an `.onnx` or `.plan` file, an artifact folder, or a Hugging Face folder or id.
        target: the target to which Hugging Face folders are exported; None = run them in
            torch. An artifact folder always runs on its own engine.
        threads: CPU threads of one run.
        device: `cpu`, `cuda` or `auto`, for torch and ONNX graphs. `auto` is a GPU if one can
            be used.
        compiled: True = run a Hugging Face model with `torch.compile`.
        fuse: True = also apply ONNX Runtime's fusions to an `.onnx` file, as its other graphs.
        keep: folder to keep exported graphs in; None = delete them.

    Raises:
        UsageError: the name is not UTF-8.
        ModelError: the model cannot be read.
        MissingError: a library or device that the model needs is missing.
    """
    check_name(name)
    path = Path(name)
    if path.suffix in (".onnx", ".plan"):
        return _opened_file(path, name, threads, device, fuse)
    if is_result(path):  # an artifact runs on its own engine
        opened = open_result(path, _engine_file, lambda x: _open_file(x, threads, device))
        return replace(opened, name=name)
    if target is not None:
        target.check()
    model = load_model(name)
    if target is not None:
        return exported(name, model, target, threads, keep)
    run: Engine
    if (
        model.source.get("model_type") == "prumux"
        or path.is_file()
        or not model.task.found_by_head  # AutoModel gives states, not vectors
    ):
        run = TorchEngine(model)
    else:
        run = HfEngine(name, model.task.auto_class(), torch_device(device), compiled)
    size = sum(4 * x.numel() for x in model.weights.values())
    return of_model(name, model, OpenGraph("", run, size))


def named(opened: OpenedModel, name: str) -> OpenedModel:
    """Rename a model and its other graphs."""
    others = tuple(replace(x, name=name) for x in opened.others)
    return replace(opened, name=name, others=others)


def of_model(name: str, model: Model, graph: OpenGraph) -> OpenedModel:
    """Combine a model with a graph that is open in an engine."""
    e = model.encoder
    return OpenedModel(
        name,
        graph.engine,
        e.vocab,
        e.token_types > 0,
        graph.size_bytes,
        model.tokenizer,
        e,
        model.task,
        graph.name,
    )


def in_layouts(
    name: str, target: Target | None, arrivals: Arrivals
) -> tuple[Target | None, ...]:
    """Targets for opening a model: padded and ragged layouts if rows arrive unsorted.

    Files and artifact folders contain engines, and run as they are.
    """
    path = Path(name)
    file = path.suffix in (".onnx", ".plan") or is_result(path)
    return (target,) if target is None or file or arrivals == "sorted" else target.layouts()


def exported(
    name: str, model: Model, target: Target, threads: int, keep: Path | None = None
) -> OpenedModel:
    """Export a model to a target, in all its graphs; `keep` as in `open_engine`."""
    found = export_all(model, target, threads, keep)
    first, *others = (of_model(name, model, x) for x in found.graphs)
    return replace(first, others=tuple(others), not_run=found.not_run)


def _opened_file(path: Path, name: str, threads: int, device: str, fuse: bool) -> OpenedModel:
    """Open an `.onnx` or `.plan` file; with `fuse`, also its fused graphs."""
    engine = _open_file(path, threads, device)
    types, size = "token_type_ids" in engine.names, _size_bytes(path)
    first = OpenedModel(name, engine, ANY_VOCAB, types, size)
    if not fuse or not isinstance(engine, OrtEngine):
        return first
    found = fuse_file(path, engine, lambda x: OrtEngine(x, threads, _providers(device)))
    first, *others = (
        replace(first, engine=x.engine, size_bytes=x.size_bytes, graph=x.name)
        for x in found.graphs
    )
    return replace(first, size_bytes=size, others=tuple(others), not_run=found.not_run)


def is_result(path: Path) -> bool:
    """True for an artifact folder that contains an engine file."""
    if not all(any((place / x).exists() for x in FILES) for place in stage_folders(path)):
        return False
    return bool(read_json(path / "config.json").get("model_type") == "prumux")


def _engine_file(place: Path) -> Path:
    return next(place / x for x in FILES if (place / x).exists())


def open_result(
    path: Path, file: Callable[[Path], Path], open_file: Callable[[Path], FileEngine]
) -> OpenedModel:
    """Open an artifact folder on its own engine, or on the two engines of a cascade.

    Args:
        path: the folder.
        file: gives the engine's file in the folder of an engine.
        open_file: opens this file.

    Raises:
        ModelError: the folder is damaged, or the engine belongs to another model.
    """
    config = read_json(path / "config.json")
    encoder, task = from_config(config, path / "config.json")
    engine = open_stages(path, lambda place: open_file(file(place)))
    size = sum(_size_bytes(file(x)) for x in stage_folders(path))
    types, words = encoder.token_types > 0, read_tokenizer(path)
    check_belongs(engine, encoder, config, path)
    return OpenedModel(str(path), engine, encoder.vocab, types, size, words, encoder, task)


def _open_file(path: Path, threads: int, device: str) -> FileEngine:
    """Open an `.onnx` or `.plan` file."""
    if path.suffix == ".plan":
        return open_plan(path)
    return OrtEngine(path, threads, _providers(device))


def _providers(device: str) -> tuple[str, ...]:
    return gpu_providers() if device == "auto" else (CUDA,) * (device == "cuda")


def _size_bytes(graph: Path) -> int:
    """Size of a graph in bytes, including weights in a file beside the graph."""
    data = graph.with_name(graph.name + "_data")
    return graph.stat().st_size + (data.stat().st_size if data.exists() else 0)


class HfEngine:
    """A Hugging Face classifier in torch, run as in transformers' documentation."""

    def __init__(self, name: str, auto_class: str, device: str, compiled: bool) -> None:
        import torch
        import transformers
        from transformers.utils import logging

        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        auto: Any = getattr(transformers, auto_class)
        module = auto.from_pretrained(name, dtype=torch.float32).to(device).eval()
        self._module: Any = torch.compile(module) if compiled else module
        self._device, self._compiled = device, compiled

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C]."""
        import torch

        with torch.inference_mode():
            given = {k: torch.as_tensor(v).to(self._device) for k, v in inputs.items()}
            output = self._module(**given)
            # Question answering models give start_logits and end_logits, in this order.
            parts = [x for name, x in output.items() if name.endswith("logits")]
            logits = parts[0] if len(parts) == 1 else torch.stack(parts, -1)
            found: NDArray[np.float32] = logits.float().cpu().numpy()
        return found

    def describe(self) -> Mapping[str, str]:
        """Facts that belong to every measurement: engine, version, device, threads."""
        import torch

        return {
            "engine": "torch.compile" if self._compiled else "torch eager",
            "version": str(torch.__version__),
            "device": self._device,
            "threads": str(torch.get_num_threads()),
            "precision": "fp32",
        }
