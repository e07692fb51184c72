"""An engine for Triton servers without the onnxruntime backend: ONNX Runtime in Python.

`repository.py` copies this file into a model repository as `model.py`, beside the graph. The
rest of prumux is not installed there, so this file imports only the standard library,
numpy, ONNX Runtime and Triton's `triton_python_backend_utils`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

GRAPH = "model.onnx"


class OnnxModel:
    """A graph in an ONNX Runtime session."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the graph, on this instance's GPU if ONNX Runtime can use it."""
        import onnxruntime as ort

        graph = Path(args["model_repository"]) / args["model_version"] / GRAPH
        if graph.is_dir():  # then the folder contains the graph and a file with its weights
            graph /= GRAPH
        config = json.loads(args["model_config"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        providers: list[Any] = ["CPUExecutionProvider"]
        cuda = "CUDAExecutionProvider" in ort.get_available_providers()
        if args["model_instance_kind"] == "GPU" and cuda:
            device = {"device_id": args["model_instance_device_id"], "use_tf32": "0"}
            providers.insert(0, ("CUDAExecutionProvider", device))
        self.session = ort.InferenceSession(str(graph), options, providers=providers)
        self.names = [x.name for x in self.session.get_inputs()]
        self.output = self.session.get_outputs()[0].name

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response for each request, in order.

        All requests run together. If this fails, each request runs alone.
        """
        import triton_python_backend_utils as pb_utils

        given = [self._inputs(x) for x in requests]
        try:
            found: list[Any] = self._run(given)
        except Exception:  # ONNX Runtime's errors have no common class
            found = [self._run_alone(x) for x in given]
        return [
            pb_utils.InferenceResponse([], error=pb_utils.TritonError(x))
            if isinstance(x, str)
            else pb_utils.InferenceResponse([pb_utils.Tensor(self.output, x)])
            for x in found
        ]

    def _inputs(self, request: Any) -> dict[str, Any]:
        import triton_python_backend_utils as pb_utils

        tensor = pb_utils.get_input_tensor_by_name
        return {name: _values(tensor(request, name)) for name in self.names}

    def _run(self, given: Sequence[dict[str, Any]]) -> list[Any]:
        """Compute the logits of each request, in one run of all their rows."""
        joined = {name: np.concatenate([x[name] for x in given]) for name in self.names}
        (logits,) = self.session.run([self.output], joined)
        ends = np.cumsum([len(x[self.names[0]]) for x in given])
        return np.split(logits, ends[:-1])

    def _run_alone(self, inputs: dict[str, Any]) -> Any:
        """Return the logits of one request, or the first line of the error."""
        try:
            return self._run([inputs])[0]
        except Exception as error:
            return str(error).strip().split("\n")[0]


TritonPythonModel = OnnxModel
"""The name that Triton's Python backend looks for."""


def _values(tensor: Any) -> Any:
    """The values of a tensor.

    Raises:
        RuntimeError: the server's Python backend was built for another numpy. Then all
            elements of its arrays have the same address.
    """
    values = tensor.as_numpy()
    if values.size > 1 and not any(values.strides):
        raise RuntimeError(
            f"this server's Python backend misreads arrays of numpy {np.__version__}: "
            "give it numpy 1 (pip install 'numpy<2')"
        )
    return values
