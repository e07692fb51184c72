"""The torch module as an engine, and a faster torch module for timing torch itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from prumux.optimizer.model.cascade import module_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.torch_ops import TorchOps


class TorchEngine:
    """The torch module as an engine, used if ONNX Runtime is not installed."""

    def __init__(self, model: Model) -> None:
        self._module = module_of(model).eval()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Logits, float32 [B, C] or [B, T, C]."""
        return run(self._module, inputs)

    def describe(self) -> Mapping[str, str]:
        """Facts that belong to every measurement: library, version, device, threads."""
        import torch

        return {
            "engine": "torch",
            "version": str(torch.__version__),
            "device": "cpu",
            "threads": str(torch.get_num_threads()),
            "precision": "fp32",
        }


class _FusedOps(TorchOps):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """See `TorchOps.attend`."""
        # In half precision the lowest float32 becomes -inf. This still hides padding.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


class FastModule(EncoderModule):
    """A module with torch's fused attention. It runs in the precision to which it is cast."""

    reading = _FusedOps
