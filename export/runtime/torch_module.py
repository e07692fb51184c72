"""The torch module as users of torch run it, for timing torch against other engines."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.torch_ops import TorchOps


class _FusedOps(TorchOps):
    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """See `TorchOps.attend`."""
        # In half precision the lowest float32 becomes -inf: padding is left out all the same.
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))


class FastModule(EncoderModule):
    """A dense module with fused attention; runs in any precision that it is cast to."""

    reading = _FusedOps
