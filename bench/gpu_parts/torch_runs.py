"""Torch as an engine of part a: with CUDA graphs or with `torch.compile`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from bench.shapes import TYPES
from prumux.export.runtime.torch_engine import FastModule
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import in_groups

from .commands import config_of


class CompiledBert:
    """Runs transformers' BERT of an unpruned shape with `torch.compile`, as users would.

    It does not have the weights of a prumux model, because a prumux model breaks the
    compiler's graph at every layer.
    """

    def __init__(self, shape: str, device: str, precision: str) -> None:
        from transformers import BertConfig, BertForSequenceClassification

        torch.manual_seed(0)
        module: Any = BertForSequenceClassification(BertConfig(**config_of(shape)))
        self.plain = module.eval()
        self._device = device
        mode = "reduce-overhead" if device == "cuda" else "default"
        moved = copy.deepcopy(module).to(device, TYPES[precision])
        self._compiled: Any = torch.compile(moved, mode=mode)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Compute logits with the compiled module."""
        given = {k: torch.as_tensor(x).to(self._device) for k, x in inputs.items()}
        with torch.inference_mode():
            found: NDArray[Any] = self._compiled(**given).logits.float().cpu().numpy()
        return found

    def expected(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Compute logits with the plain module in fp32 on the CPU."""
        given = {k: torch.as_tensor(x) for k, x in inputs.items()}
        with torch.inference_mode():
            found: NDArray[Any] = self.plain(**given).logits.numpy()
        return found


class TorchRun:
    """Runs the torch module on the device.

    The kind `torch-graph` replays a CUDA graph, captured again when the input shape changes.
    """

    def __init__(self, model: Model, device: str, precision: str, kind: str) -> None:
        dtype = TYPES[precision]
        self._module: Any = FastModule(model).to(device, dtype).eval()
        self._device, self._kind = device, kind
        self._graphs: dict[tuple[int, ...], Any] = {}
        self._groups = in_groups(self._whole, model.encoder.slots)

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        """Compute logits."""
        return self._groups(inputs)

    def _whole(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        given = {k: torch.as_tensor(x) for k, x in inputs.items()}
        with torch.inference_mode():
            if self._kind == "torch-graph":
                logits = self._replayed(given)
            else:
                logits = self._module(**{k: x.to(self._device) for k, x in given.items()})
            found: NDArray[Any] = logits.float().cpu().numpy()
        return found

    def _replayed(self, given: Mapping[str, torch.Tensor]) -> Any:
        shape = tuple(given["input_ids"].shape)
        if shape not in self._graphs:
            self._graphs.clear()  # a graph keeps the memory of its shape
            self._graphs[shape] = self._captured(given)
        graph, held, logits = self._graphs[shape]
        for name, x in given.items():
            held[name].copy_(x)
        graph.replay()
        return logits

    def _captured(self, given: Mapping[str, torch.Tensor]) -> tuple[Any, Any, Any]:
        held = {k: x.to(self._device) for k, x in given.items()}
        stream: Any = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self._module(**held)
        torch.cuda.current_stream().wait_stream(stream)
        graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = self._module(**held)
        return graph, held, logits
