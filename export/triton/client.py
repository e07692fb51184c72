"""A client for the engine of a running Triton server, over HTTP.

Source: https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.graph.graph import OUTPUT
from prumux.optimizer.base.errors import MissingError, PrumuxError, UsageError
from prumux.optimizer.model.row_groups import batch_rows, in_groups

from .repository import NAME

TIMEOUT_SECONDS = 60


class TritonEngine:
    """The engine of a model repository that prumux wrote, without the packer in front of it.

    The packer would put rows into other groups. This engine runs the caller's groups, so that
    its answers can be compared with certified answers.

    Example:
        >>> engine = TritonEngine("localhost:8000")  # doctest: +SKIP
        >>> engine.run({"input_ids": ids, "attention_mask": mask})  # doctest: +SKIP
    """

    def __init__(
        self, url: str, slots: int = 1, name: str = NAME, part: str = "engine"
    ) -> None:
        """Connect to the server, and read the model's configuration.

        Args:
            url: host and port of the server's HTTP address.
            slots: number of rows that share a forward pass.
            name: name of the Triton model that clients call.
            part: `engine`, or `second` for the second engine of a cascade.

        Raises:
            MissingError: no Triton server answers at this address.
            UsageError: the server does not serve this model.
        """
        self._url = (url if "://" in url else f"http://{url}").rstrip("/")
        self._model = f"{name}_{part}"
        self._version = str(self._ask("v2").get("version", "unknown"))
        config = self._ask(f"v2/models/{self._model}/config")
        self._backend = str(config.get("backend", "unknown"))
        self._most = batch_rows(int(config["max_batch_size"]), slots)
        self.slots = slots
        self.names = tuple(str(x["name"]) for x in config["input"])
        """Names of the engine's inputs, in order."""
        self._output = str(config.get("output", [{"name": OUTPUT}])[0]["name"])
        self._run = in_groups(self._whole_groups, slots)

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C], for any number of rows.

        Raises:
            PrumuxError: the server refuses the rows or does not answer.
        """
        found: NDArray[np.float32] = self._run({x: np.asarray(inputs[x]) for x in self.names})
        return found

    def describe(self) -> Mapping[str, str]:
        """Facts that belong to every measurement: engine, version, backend."""
        return {"engine": "triton", "version": self._version, "backend": self._backend}

    def _whole_groups(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        rows = len(inputs[self.names[0]])
        parts = [
            self._infer({name: x[i : i + self._most] for name, x in inputs.items()})
            for i in range(0, rows, self._most)
        ]
        return np.concatenate(parts)

    def _infer(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        tensors = [
            {"name": name, "shape": x.shape, "datatype": "INT64", "data": x.ravel().tolist()}
            for name, x in inputs.items()
        ]
        asked = {"inputs": tensors, "outputs": [{"name": self._output}]}
        (found,) = self._ask(f"v2/models/{self._model}/infer", asked)["outputs"]
        return np.array(found["data"], np.float32).reshape(found["shape"])

    def _ask(self, path: str, values: Mapping[str, Any] | None = None) -> Any:
        """Send a request, and return the JSON of the server's answer."""
        data = None if values is None else json.dumps(values).encode()
        try:
            request = urllib.request.Request(f"{self._url}/{path}", data)
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = error.read().decode(errors="replace")[:300]
            kind = UsageError if values is None else PrumuxError
            raise kind(f"'{self._url}/{path}' answers {error.code}: {said}") from error
        except (OSError, ValueError) as error:
            raise MissingError(
                f"no Triton server answers at '{self._url}': {error}\n"
                "give host and port of its HTTP, such as localhost:8000"
            ) from error
