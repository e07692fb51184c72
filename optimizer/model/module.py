"""The model as a plain `torch.nn.Module`, the reference for every pass and export target."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from . import forward
from .model import Model
from .row_groups import in_groups
from .sizes import Branch, Encoder
from .torch_ops import Factors, TorchOps
from .weights import expected_shapes


class EncoderForward:
    """A mixin with the forward pass, for `nn.Module`s with the names of `expected_shapes`.

    The module sets `sizes`, `alive` and `factors`.
    """

    sizes: Encoder
    alive: Sequence[Branch]
    """The branches with unmasked units. All other branches are skipped."""
    factors: Factors
    reading: ClassVar[type[TorchOps]] = TorchOps
    """The class of the operators. A subclass may set another class."""

    if TYPE_CHECKING:

        def get_parameter(self, target: str) -> nn.Parameter:
            """See `nn.Module.get_parameter`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        factors: Factors | None = None,
    ) -> Tensor:
        """Logits [B, C], or [B, T, C] for token tasks.

        Args:
            input_ids: int64 [B, T].
            attention_mask: [B, T], 1 = real token.
            token_type_ids: int64 [B, T]; all zeros if left out.
            factors: factors of units that replace `self.factors`, to compute their gradients.
        """
        ops = self.ops(input_ids, attention_mask, token_type_ids, factors=factors)
        found: Tensor = forward.logits(ops, self.alive)
        return found

    def ops(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
        *,
        factors: Factors | None = None,
    ) -> TorchOps:
        """The operators for one batch. Arguments as in `forward`."""
        z = factors or self.factors
        return self.reading(self.sizes, self, attention_mask, z, input_ids, token_type_ids)

    def states(self, ops: TorchOps, x: Tensor) -> Iterator[tuple[Branch, Tensor]]:
        """The residual stream after each branch, see `forward.states`."""
        return forward.states(ops, x, self.alive)


class EncoderModule(EncoderForward, nn.Module):
    """Runs a `Model`. Its `state_dict()` has the names of `expected_shapes`."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.sizes = model.encoder
        # The order is that of `expected_shapes`, not of the mapping: checkpoints rely on this
        # order.
        attach(self, {name: model.weights[name] for name in expected_shapes(self.sizes)})
        self.alive = living(model)
        self.factors = _factors(model)

    def get_parameter(self, target: str) -> nn.Parameter:
        """See `nn.Module.get_parameter`, whose checks take longer than a small linear map."""
        *path, last = target.split(".")
        module: Any = self
        for part in path:
            module = module._modules[part]
        found: nn.Parameter = module._parameters[last]
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """See `nn.Module._apply`. Factors move to another device with the weights."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        z = self.factors
        hidden = None if z.hidden is None else fn(z.hidden)
        self.factors = Factors(tuple(map(fn, z.heads)), tuple(map(fn, z.ffn)), hidden)
        return self


class RunsRows(Protocol):
    """A module that returns logits. `sizes` contain the number of rows that it mixes."""

    @property
    def sizes(self) -> Encoder: ...

    def __call__(self, *args: Tensor, **inputs: Tensor) -> Any:
        """Logits [B, C] or [B, T, C]."""


def living(model: Model) -> list[Branch]:
    """The branches with unmasked units, in order."""
    masks = {"attention": model.masks.heads, "ffn": model.masks.ffn}
    return [b for b in model.encoder.branches() if bool(masks[b.kind][b.index].any())]


def attach(host: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Register tensors as parameters under their dotted names."""
    for name, tensor in weights.items():
        *path, last = name.split(".")
        module = host
        for part in path:
            inner = module._modules.get(part)
            if inner is None:
                inner = nn.Module()
                module.add_module(part, inner)
            module = inner
        module.register_parameter(last, nn.Parameter(tensor, requires_grad=False))


def _factors(model: Model) -> Factors:
    """The masks as factors. All-true masks are left out, because they change nothing."""
    masks = model.masks
    return Factors(
        heads=() if _trivial(masks.heads) else tuple(m.float() for m in masks.heads),
        ffn=() if _trivial(masks.ffn) else tuple(m.float() for m in masks.ffn),
        hidden=None if bool(masks.hidden.all()) else masks.hidden.float(),
    )


def _trivial(masks: tuple[Tensor, ...]) -> bool:
    """True if every branch is either complete or removed, so that no factor is needed."""
    return all(bool(m.all()) or not bool(m.any()) for m in masks)


def run(module: RunsRows, inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """Logits for numpy inputs with any number of rows, without gradients."""

    def whole_groups(inputs: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
        with torch.inference_mode():
            logits: Tensor = module(**{k: torch.as_tensor(v) for k, v in inputs.items()})
        return logits.numpy()

    return in_groups(whole_groups, module.sizes.slots)(inputs)
