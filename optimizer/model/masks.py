"""Masks of the heads, FFN units and hidden dimensions that are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prumux.optimizer.base.errors import VerifyError

from .sizes import Encoder, Layer


@dataclass(frozen=True, eq=False)
class Masks:
    """Masks of heads, FFN units and hidden dimensions; True = kept.

    `heads` contains bool [H] per layer, `ffn` contains bool [F] per layer. `hidden` is
    bool [D] and is shared by all layers. A branch without units is removed with its norm and
    biases.
    """

    heads: tuple[Tensor, ...]
    ffn: tuple[Tensor, ...]
    hidden: Tensor

    @staticmethod
    def full(encoder: Encoder) -> Masks:
        """Masks that keep everything."""
        return Masks(
            heads=tuple(torch.ones(x.heads, dtype=torch.bool) for x in encoder.layers),
            ffn=tuple(torch.ones(x.ffn, dtype=torch.bool) for x in encoder.layers),
            hidden=torch.ones(encoder.hidden, dtype=torch.bool),
        )

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All masks: heads of each layer, FFN units of each layer, hidden dimensions."""
        return (*self.heads, *self.ffn, self.hidden)

    @property
    def all_true(self) -> bool:
        """True if the masks keep everything."""
        return all(bool(m.all()) for m in self.tensors)

    def key(self) -> str:
        """A text that identifies these masks."""
        return "/".join("".join(map(str, m.int().tolist())) for m in self.tensors)

    def verify(self, encoder: Encoder) -> None:
        """Check that the masks fit an encoder.

        Raises:
            VerifyError: the number of masks, or a mask's length or type, is wrong; or the mask
                of hidden dimensions keeps none.
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
        """The encoder's sizes after these masks are sliced."""
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
