"""Masks: which heads, FFN units and hidden dimensions survive."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prumux.optimizer.base.errors import VerifyError

from .sizes import Encoder, Layer


@dataclass(frozen=True, eq=False)
class Masks:
    """Heads, FFN units and hidden dimensions that stay.

    A branch without units is removed, with its norm and biases.

    heads: per layer bool [H]; ffn: per layer bool [F]; hidden: bool [D], shared by all.
    """

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    hidden: Tensor

    @staticmethod
    def full(encoder: Encoder) -> Masks:
        """Nothing pruned."""
        return Masks(
            heads=tuple(torch.ones(x.heads, dtype=torch.bool) for x in encoder.layers),
            ffn=tuple(torch.ones(x.ffn, dtype=torch.bool) for x in encoder.layers),
            hidden=torch.ones(encoder.hidden, dtype=torch.bool),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them: per layer heads, per layer FFN units, hidden."""
        return (*self.heads, *self.ffn, self.hidden)

    @property
    def all_true(self) -> bool:
        """Whether nothing is pending."""
        return all(bool(m.all()) for m in self.tensors)

    def key(self) -> str:
        """A text that tells them from others."""
        return "/".join("".join(map(str, m.int().tolist())) for m in self.tensors)

    def verify(self, encoder: Encoder) -> None:
        """Check lengths and types.

        Raises:
            VerifyError: names the first mask that is off, with both lengths.
        """
        sizes = {
            "heads": (self.heads, [x.heads for x in encoder.layers]),
            "ffn": (self.ffn, [x.ffn for x in encoder.layers]),
        }
        for kind, (masks, widths) in sizes.items():
            if len(masks) != len(widths):
                raise VerifyError(f"{len(masks)} {kind} masks for {len(widths)} layers")
            for i, (mask, width) in enumerate(zip(masks, widths, strict=True)):
                _same_mask(f"layers.{i}.{kind}", mask, width)
        _same_mask("hidden", self.hidden, encoder.hidden)
        if not bool(self.hidden.any()):
            raise VerifyError(f"the hidden mask keeps none of {encoder.hidden} dimensions")

    def sizes(self, encoder: Encoder) -> Encoder:
        """The encoder's sizes once these masks are made physical."""
        layers = tuple(
            Layer(heads=int(h.sum()), ffn=int(f.sum()))
            for h, f in zip(self.heads, self.ffn, strict=True)
        )
        hidden = int(self.hidden.sum())
        embedding = encoder.embedding if encoder.projected else hidden
        return replace(encoder, layers=layers, hidden=hidden, embedding=embedding)


def _same_mask(name: str, mask: Tensor, width: int) -> None:
    if tuple(mask.shape) != (width,) or mask.dtype != torch.bool:
        raise VerifyError(
            f"mask '{name}' is {mask.dtype} {tuple(mask.shape)}, "
            f"its sizes say {torch.bool} {(width,)}"
        )
