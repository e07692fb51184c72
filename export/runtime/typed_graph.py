"""Runs a typed graph on the CPU, in place of an engine on machines without a GPU."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

import onnx

from prumux.export.graph.graph_file import FILE, is_large, save
from prumux.export.graph.rounding import rounding
from prumux.optimizer.base.errors import ModelError

from .ort import OrtEngine


class TypedGraphEngine(OrtEngine):
    """Runs `model.onnx` of any precision in ONNX Runtime, and rounds values to their types.

    The answers are those of the typed graph by the rules of ONNX. The times say nothing about
    times on a GPU.
    """

    def __init__(self, graph: Path, threads: int, instead_of: str = "") -> None:
        """Open a session.

        Args:
            graph: a typed `.onnx` file.
            threads: CPU threads of one run.
            instead_of: name of the engine that the typed graph replaces.

        Raises:
            MissingError: ONNX Runtime is not installed.
            ModelError: the graph is missing or damaged.
        """
        try:
            proto = onnx.load(graph)
        except Exception as error:  # errors of protobuf or of the file system
            first = str(error).strip().split("\n")[0][:200]
            raise ModelError(f"'{graph}' cannot be read: {first}") from error
        self._instead_of = instead_of
        proto = rounding(proto)
        if is_large(proto):
            with tempfile.TemporaryDirectory() as folder:
                save(proto, Path(folder))
                super().__init__(Path(folder) / FILE, threads)
        else:
            super().__init__(proto.SerializeToString(), threads)

    def describe(self) -> Mapping[str, str]:
        """Facts that belong to every measurement: engine, version, device, precision."""
        runs = f"the typed graph, rounded to {self._precision}"
        facts = {**super().describe(), "runs": runs}
        if self._instead_of:
            facts["instead_of"] = self._instead_of
        return facts
