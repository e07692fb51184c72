"""Open anything that runs a classifier: artifact folders, ONNX graphs, Hugging Face models."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from prumux.export.runtime.engine_match import check_belongs
from prumux.export.runtime.ort import CUDA, OrtEngine, gpu_providers
from prumux.export.runtime.torch_engine import TorchEngine
from prumux.export.trt.engine import PLANS, open_plan
from prumux.optimizer.base.devices import device as torch_device
from prumux.optimizer.base.paths import check_name
from prumux.optimizer.data.predict import workload
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.artifact import from_config
from prumux.optimizer.model.checkpoint.tokenizer_files import read_tokenizer
from prumux.optimizer.model.folder import read_json
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.target import Engine, Target
from prumux.optimizer.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANY_VOCAB = 1000
"""Random rows use token ids below this number; every vocabulary that we know is larger."""
FILES = (*PLANS, "model.onnx")
"""Engine files of an artifact folder, in the order in which they are looked for."""


class FileEngine(Engine, Protocol):
    """An engine from a file."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of its inputs, in order."""


@dataclass(frozen=True, eq=False)
class OpenedModel:
    """An engine, with the sizes and the tokenizer that its inputs are made from."""

    name: str
    engine: Engine
    vocab: int
    token_types: bool
    size_bytes: int
    tokenizer: PreTrainedTokenizerBase | None = None
    encoder: Encoder | None = None
    task: Task | None = None


def open_engine(
    name: str, target: Target | None, threads: int, device: str, compiled: bool
) -> OpenedModel:
    """Open a model that a user named.

    Args:
        name: an `.onnx` or `.plan` file, an artifact folder, or a Hugging Face folder or id.
        target: the target that Hugging Face folders are exported to; None = they run in
            torch. An artifact folder always runs on its own engine.
        threads: CPU threads of one run.
        device: `cpu`, `cuda` or `auto`, for torch and ONNX graphs. `auto` is a GPU if one can
            be used.
        compiled: True = a Hugging Face model runs with `torch.compile`.

    Raises:
        UsageError: the name is not UTF-8.
        ModelError: the model cannot be read.
        MissingError: the library or device that runs it is missing.
    """
    check_name(name)
    path = Path(name)
    if path.suffix in (".onnx", ".plan"):
        engine = _open_file(path, threads, device)
        types = "token_type_ids" in engine.names
        return OpenedModel(name, engine, ANY_VOCAB, types, _size_bytes(path))
    config = _own_config(path)
    if config is not None:  # an artifact runs on its own engine
        encoder, task = from_config(config, path / "config.json")
        file = next(path / x for x in FILES if (path / x).exists())
        types, size = encoder.token_types > 0, _size_bytes(file)
        words = read_tokenizer(path)
        engine = _open_file(file, threads, device)
        check_belongs(engine, encoder, config, path)
        return OpenedModel(name, engine, encoder.vocab, types, size, words, encoder, task)
    if target is not None:
        target.check()
    model = load_model(name)
    run: Engine
    size = sum(4 * x.numel() for x in model.weights.values())
    if target is not None:
        run, size = _exported(model, target, threads)
    elif (
        model.source.get("model_type") == "prumux"
        or path.is_file()
        or not model.task.found_by_head  # AutoModel gives states, not vectors
    ):
        run = TorchEngine(model)
    else:
        run = HfEngine(name, model.task.auto_class(), torch_device(device), compiled)
    e = model.encoder
    types = e.token_types > 0
    return OpenedModel(name, run, e.vocab, types, size, model.tokenizer, e, model.task)


def _own_config(path: Path) -> dict[str, Any] | None:
    """The configuration of an artifact folder with an engine; None for other folders."""
    if not any((path / x).exists() for x in FILES):
        return None
    config = read_json(path / "config.json")
    return config if config.get("model_type") == "prumux" else None


def _open_file(path: Path, threads: int, device: str) -> FileEngine:
    """Open an `.onnx` or `.plan` file."""
    if path.suffix == ".plan":
        return open_plan(path)
    providers = gpu_providers() if device == "auto" else (CUDA,) * (device == "cuda")
    return OrtEngine(path, threads, providers)


def _exported(model: Model, target: Target, threads: int) -> tuple[Engine, int]:
    """Export a model to a temporary folder.

    Returns:
        The open engine, and the size of its files in bytes.
    """
    e = model.encoder
    length = min(16, e.positions // 2)
    ids = np.random.default_rng(0).integers(e.vocab // 2, e.vocab, (4, length))
    rows = Ragged.of(ids)
    types = Ragged.of(np.zeros_like(ids)) if e.token_types else None
    some = Encoded(rows, types, None, e.pad_id)
    work = workload(some, 4, None)
    ctx = Context(fit=some, workload=work, dense=model, target=target, threads=threads)
    with tempfile.TemporaryDirectory() as folder:
        emitted = target.emit(model, ctx, Path(folder))
        size = sum((Path(folder) / x).stat().st_size for x in emitted.files)
        return target.engine(Path(folder), threads), size


def _size_bytes(graph: Path) -> int:
    """Size of a graph in bytes, with the weights that may lie in a file beside it."""
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
            found: NDArray[np.float32] = self._module(**given).logits.float().cpu().numpy()
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
