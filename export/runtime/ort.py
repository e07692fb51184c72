"""An ONNX graph in ONNX Runtime, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.graph.builder import INPUTS
from prumux.export.graph.compose import CASCADE, DEFERRED
from prumux.export.graph.graph import LAYOUT, ORIGIN, PRECISION, SLOTS
from prumux.optimizer.base.errors import MissingError, ModelError, UsageError
from prumux.optimizer.model.row_groups import in_groups

from .rtx_provider import RTX, add_rtx

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPTIONS = {CUDA: {"use_tf32": "0"}}
"""TF32 is off, because products in TF32 do not have fp32 precision."""


def session_options(threads: int) -> Any:
    """Session options with all optimisations. Messages are off, because errors are raised.

    Raises:
        MissingError: ONNX Runtime is not installed.
    """
    ort = _library()
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


class OrtEngine:
    """An ONNX graph in an ONNX Runtime session.

    Example:
        >>> engine = OrtEngine(Path("model.onnx"), threads=4)  # doctest: +SKIP
        >>> engine.run({"input_ids": ids, "attention_mask": mask})  # doctest: +SKIP
    """

    def __init__(
        self, graph: Path | bytes, threads: int, providers: tuple[str, ...] = ()
    ) -> None:
        """Open a session.

        Args:
            graph: an `.onnx` file, or the serialized graph.
            threads: CPU threads of one run; 0 = ONNX Runtime's choice.
            providers: execution providers in order of preference. The CPU always comes last.

        Raises:
            MissingError: ONNX Runtime or a provider is not installed, or cannot be used.
            ModelError: the graph is missing, damaged, or too new for this ONNX Runtime.
        """
        self._what = "the graph" if isinstance(graph, bytes) else f"'{graph}'"
        self._threads = threads
        self._session = _open_session(graph, threads, providers)
        self._names = tuple(x.name for x in self._session.get_inputs())
        self._outputs = tuple(x.name for x in self._session.get_outputs())
        meta = self._session.get_modelmeta()
        about = meta.custom_metadata_map
        slots = about.get(SLOTS, "1")
        self._precision = about.get(PRECISION, "fp32")
        self._layout = {"layout": about[LAYOUT]} if LAYOUT in about else {}
        self.slots = max(1, int(slots)) if slots.isdecimal() else 1
        """Number of rows that share a forward pass; 1 = the graph is not multiplexed."""
        shape = self._session.get_outputs()[0].shape or [""]
        known = isinstance(shape[-1], int)
        self.logits = (*("tokens" for _ in shape[1:-1]), shape[-1]) if known else ()
        """Axes of a row's logits, labels last. Empty if the graph does not state them."""
        self.sizes = meta.description if meta.description.startswith("encoder{") else ""
        """Text form of the `Encoder`. Empty in graphs that prumux did not write."""
        self.second = about.get(CASCADE, "none") if self.sizes else ""
        """Text form of a cascade's `SecondStage`; `none` in other models, empty if unknown."""
        self.origin = about.get(ORIGIN, "")
        """Digest of the given model, see `graph.origin`; empty if unknown."""
        self._run = in_groups(self._whole_groups, self.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        return self._names

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C], for any number of rows.

        Args:
            inputs: the graph's inputs by name, int64 [B, T] each. Inputs that the graph does
                not have are ignored.

        Raises:
            UsageError: an input is missing, or the graph has an input that prumux does not
                know.
        """
        unknown = [x for x in self._names if x not in INPUTS]
        if unknown:
            raise UsageError(
                f"{self._what} asks for {', '.join(unknown)}; known are {', '.join(INPUTS)}\n"
                "export it with these inputs only"
            )
        if not set(self._names) <= set(inputs):
            raise UsageError(
                f"{self._what} takes {', '.join(self._names)}; given: {', '.join(inputs)}\n"
                "tokenise with the tokenizer that lies beside the graph"
            )
        return self._run({name: inputs[name] for name in self._names})

    def _whole_groups(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        first = self._outputs[:1]  # cascades and embeddings have a second output
        found: NDArray[np.float32] = self._session.run(first, dict(inputs))[0]
        return found

    def deferred(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Mask of the rows that a cascade's second stage answers, [B]: 1 = deferred, 0 = not.

        The mask is 0 everywhere in models without a second stage.
        """

        def whole_groups(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
            if DEFERRED not in self._outputs:
                return np.zeros(len(inputs["input_ids"]))
            found = self._session.run([DEFERRED], dict(inputs))[0]
            return np.asarray(found, np.float64)

        given = {name: inputs[name] for name in self._names}
        return in_groups(whole_groups, self.slots)(given)

    def describe(self) -> Mapping[str, str]:
        """Facts that belong to every measurement: engine, device, precision, layout."""
        provider = self._session.get_providers()[0]
        return {
            "engine": "onnxruntime",
            "version": _library().__version__,
            "provider": provider,
            "device": "cpu" if provider == CPU else "gpu",
            "threads": str(self._threads),
            "precision": self._precision,
            **self._layout,
        }


def gpu_providers() -> tuple[str, ...]:
    """The CUDA provider if torch sees a GPU and ONNX Runtime has the provider, else ()."""
    import torch

    try:
        there = CUDA in _library().get_available_providers()
    except MissingError:
        return ()
    return (CUDA,) if there and torch.cuda.is_available() else ()


def _open_session(graph: Path | bytes, threads: int, providers: tuple[str, ...]) -> Any:
    """Open an `InferenceSession` on the first of the providers.

    Raises:
        MissingError: ONNX Runtime or a provider is not installed, or cannot be used.
        ModelError: the graph is missing, damaged, or too new for this ONNX Runtime.
    """
    ort = _library()
    options = session_options(threads)
    if RTX in providers:
        add_rtx(options, ort)
    absent = [p for p in providers if p not in (RTX, *ort.get_available_providers())]
    if absent:
        raise MissingError(
            f"this ONNX Runtime has no {absent[0]}, "
            f"only {', '.join(ort.get_available_providers())}\n"
            "for NVIDIA GPUs: pip install 'prumux[cuda]'"
        )
    order = [(p, OPTIONS.get(p, {})) for p in dict.fromkeys((*providers, CPU))]
    try:
        source = graph if isinstance(graph, bytes) else str(graph)
        named = {} if RTX in providers else {"providers": order}
        session = ort.InferenceSession(source, options, **named)
    except Exception as error:  # ONNX Runtime's errors have no common class
        file = not isinstance(graph, bytes)
        what = f"'{graph!s}'" if file else "the graph"
        cure = "\nexport the model again if the file is damaged" if file else ""
        first = str(error).strip().split("\n")[0][:200]
        by = f"ONNX Runtime {ort.__version__}"
        raise ModelError(f"{what} cannot be opened by {by}: {first}{cure}") from error
    if providers and session.get_providers()[0] != providers[0]:
        raise MissingError(
            f"ONNX Runtime {ort.__version__} has {providers[0]} and cannot use it: "
            "no GPU, or libraries of CUDA that are missing or of another version\n"
            "pip install 'prumux[cuda]' on a machine with an NVIDIA GPU, or use the CPU"
        )
    return session


def _library() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(
            "ONNX Runtime is not installed: pip install 'prumux[cpu]'"
        ) from error
    library: ModuleType = onnxruntime
    return library
