"""Which linear maps suffer from int8? Estimated for all of them in one backward pass.

Lowering a map changes its outputs y by d = q(x) q(W) - x W. To second order the predictions
then diverge from the given model's by

    KL = 1/2 E_c[(g_c . d)^2],    g_c = d log p_c / d y,

the Fisher information along d, with c drawn from the model's own predictions: no labels are
needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prumux.optimizer.base.environment import int8_saturates
from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.ir import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.torch_ops import TorchOps
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.tasks.fisher import signs

ROWS = 128
BATCH = 32


@dataclass(frozen=True)
class _Seen:
    output: Tensor
    error: Tensor


class _WatchedOps(TorchOps):
    """Remembers what every linear map gives, and how far int8 would be off."""

    def apply(self, name: str, x: Tensor) -> Tensor:
        """As it is, and watched."""
        y, host = super().apply(name, x), self.weights
        assert isinstance(host, _Watched)
        if name not in host.names:
            return y
        if not y.requires_grad:
            y.requires_grad_()
        with torch.no_grad():
            weight = self.p(f"{name}.weight")
            error = _activations(x) @ _weights(weight).T - x @ weight.T
        host.seen[name] = _Seen(y, error)
        return y


class _Watched(EncoderModule):
    reading = _WatchedOps

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__(model)
        self.names = frozenset(names)
        self.seen: dict[str, _Seen] = {}


def divergence(model: Model, names: Sequence[str], ctx: Context) -> dict[str, float]:
    """Nats a row by which the predictions diverge, for each linear map lowered alone.

    Args:
        model: a model without masks.
        names: of linear maps, such as `layers.0.ffn.up`.
        ctx: its first `ROWS` fit rows are used.
    """
    rows = ctx.fit.take(range(min(ROWS, len(ctx.fit))))
    groups = groups_of(rows, BATCH, model.encoder.slots)
    module = _Watched(model, names).eval()
    random = torch.Generator().manual_seed(ctx.seed)
    total = dict.fromkeys(names, 0.0)
    with ctx.progress.task("sensitivity to int8", len(groups)) as step:
        for batch in groups:
            inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
            logits = module(**inputs)
            real = None if model.encoder.pooled else inputs["attention_mask"].bool()
            seen = {k: module.seen[k] for k in names if k in module.seen}
            outputs = [x.output for x in seen.values()]
            weight = signs(logits, real, model.encoder.slots > 1, random)
            for loss in model.task.fisher_scalars(logits, weight, random):
                grads = torch.autograd.grad(loss, outputs, retain_graph=True)
                for (name, x), grad in zip(seen.items(), grads, strict=True):
                    along = (grad * x.error).flatten(1).sum(1)
                    total[name] += 0.5 * float(along.square().sum())
            module.seen.clear()
            step()
    count = sum(len(batch.rows) for batch in groups)
    return {name: x / max(1, count) for name, x in total.items()}


def worst(nats: Mapping[str, float], *, most: float, share: float = 0.0) -> tuple[str, ...]:
    """The fewest maps to leave out, the worst first, for what remains to be small enough.

    Args:
        nats: from `divergence`.
        most: the divergence that may remain, in nats.
        share: of the whole divergence that must go in any case, 0 to 1.
    """
    left = sum(nats.values())
    enough = min(most, (1 - share) * left) * (1 + 1e-9)
    kept = []
    for name in sorted(nats, key=lambda x: -nats[x]):
        if left <= enough or nats[name] <= 0:
            break
        kept.append(name)
        left -= nats[name]
    return tuple(kept)


def _activations(x: Tensor) -> Tensor:
    """uint8 with one scale for the whole tensor, as at run time."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def _weights(weight: Tensor) -> Tensor:
    """int8 with a scale an output, or 7 bits of it; see `int8.lower`."""
    most = 63 if int8_saturates() else 127
    scale = (weight.abs().amax(1, keepdim=True) / most).clamp(min=1e-12)
    return (weight / scale).round().clamp(-most, most) * scale
