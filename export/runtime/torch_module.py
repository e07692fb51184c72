"""The torch module as users of torch run it, for timing torch against other engines."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from prumux.optimizer.model.module import Branch, EncoderModule, Factors


class FastModule(EncoderModule):
    """A dense module with fused attention; runs in any precision that it is cast to."""

    def inner(
        self,
        branch: Branch,
        x: Tensor,
        bias: Tensor,
        *,
        rows: Tensor | None = None,
        factors: Factors | None = None,
    ) -> Tensor:
        """See `EncoderForward.inner`; heads carry no factors here."""
        if branch.kind == "ffn":
            return super().inner(branch, x, bias, rows=rows, factors=factors)
        heads = self.sizes.layers[branch.index].heads
        q, k, v = (
            self._split(self.linear(f"{branch.name}.{part}", of), heads)
            for part, of in (("query", x if rows is None else rows), ("key", x), ("value", x))
        )
        # In half precision the lowest float32 becomes -inf: padding is left out all the same.
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return context.transpose(1, 2).flatten(2)
