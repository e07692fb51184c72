"""ONNX Runtime: one session, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.graph.builder import INPUTS
from prumux.export.graph.graph import ORIGIN, PRECISION, SLOTS
from prumux.optimizer.base.errors import MissingError, ModelError, UsageError
from prumux.optimizer.model.row_groups import in_groups

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
OPTIONS = {CUDA: {"use_tf32": "0"}}
"""fp32 is to mean fp32: products rounded to TF32 would not pass for it."""


def session_options(threads: int) -> Any:
    """Options of a session that optimises all it can and prints nothing: errors are raised.

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
    """A graph in ONNX Runtime, from a file or from serialized bytes."""

    def __init__(
        self, graph: Path | bytes, threads: int, providers: tuple[str, ...] = ()
    ) -> None:
        """Open a session.

        Args:
            graph: a `.onnx` file, or what is in one.
            threads: CPU threads of one run.
            providers: in order of preference; the CPU always comes last.

        Raises:
            MissingError: ONNX Runtime, or one of the providers, is not installed.
            ModelError: the graph is missing, damaged, or not for this ONNX Runtime.
        """
        ort = _library()
        self._what = "the graph" if isinstance(graph, bytes) else f"'{graph}'"
        self._threads = threads
        options = session_options(threads)
        absent = [p for p in providers if p not in ort.get_available_providers()]
        if absent:
            raise MissingError(
                f"this ONNX Runtime has no {absent[0]}, "
                f"only {', '.join(ort.get_available_providers())}\n"
                "for NVIDIA GPUs: pip install 'prumux[cuda]'"
            )
        order = [(p, OPTIONS.get(p, {})) for p in dict.fromkeys((*providers, CPU))]
        try:
            source = graph if isinstance(graph, bytes) else str(graph)
            self._session = ort.InferenceSession(source, options, providers=order)
        except Exception as error:  # ONNX Runtime has no common class for its own
            file = not isinstance(graph, bytes)
            cure = "\nexport the model again if the file is damaged" if file else ""
            first = str(error).strip().split("\n")[0][:200]
            by = f"ONNX Runtime {ort.__version__}"
            raise ModelError(
                f"{self._what} cannot be opened by {by}: {first}{cure}"
            ) from error
        if providers and self._session.get_providers()[0] != providers[0]:
            raise MissingError(
                f"ONNX Runtime {ort.__version__} has {providers[0]} and cannot use it: "
                "no GPU, or libraries of CUDA that are missing or of another version\n"
                "pip install 'prumux[cuda]' on a machine with an NVIDIA GPU, or use the CPU"
            )
        self._names = tuple(x.name for x in self._session.get_inputs())
        meta = self._session.get_modelmeta()
        about = meta.custom_metadata_map
        told = about.get(SLOTS, "1")
        self._precision = about.get(PRECISION, "fp32")
        self.slots = max(1, int(told)) if told.isdecimal() else 1
        """Rows that the graph mixes into one."""
        shape = self._session.get_outputs()[0].shape or [""]
        known = isinstance(shape[-1], int)
        self.logits = (*("tokens" for _ in shape[1:-1]), shape[-1]) if known else ()
        """What a row gets, labels last; empty if the graph does not say how many."""
        self.sizes = meta.description if meta.description.startswith("encoder{") else ""
        """As `Encoder` tells them; empty in graphs of others."""
        self.origin = about.get(ORIGIN, "")
        """See `graph.origin`."""
        self._run = in_groups(self._whole_groups, self.slots)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the graph's inputs, in order."""
        return self._names

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C], for any number of rows.

        Args:
            inputs: at least the graph's inputs, by name, int64 [B, T] each. What it does not
                ask for, as graphs of others may not ask for masks, is left out.

        Raises:
            UsageError: an input is missing or not known.
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
        found: NDArray[np.float32] = self._session.run(None, dict(inputs))[0]
        return found

    def describe(self) -> Mapping[str, str]:
        """What a measurement must state."""
        provider = self._session.get_providers()[0]
        return {
            "engine": "onnxruntime",
            "version": _library().__version__,
            "provider": provider,
            "device": "cpu" if provider == CPU else "gpu",
            "threads": str(self._threads),
            "precision": self._precision,
        }


def gpu_providers() -> tuple[str, ...]:
    """CUDA where torch sees a GPU and ONNX Runtime can use it; else nothing."""
    import torch

    try:
        there = CUDA in _library().get_available_providers()
    except MissingError:
        return ()
    return (CUDA,) if there and torch.cuda.is_available() else ()


def _library() -> ModuleType:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingError(
            "ONNX Runtime is not installed: pip install 'prumux[cpu]'"
        ) from error
    library: ModuleType = onnxruntime
    return library
