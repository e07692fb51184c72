"""Estimate how much int8 in each linear map changes the predictions, in one backward pass.

int8 changes the outputs y of a map by d = q(x) q(W) - x W, where q quantises. To second order,
the KL divergence from the given model's predictions is

    KL = 1/2 E_c[(g_c . d)^2],    g_c = d log p_c / d y,

the Fisher information along d. The class c is drawn from the model's own predictions, so no
labels are needed. BRECQ (https://arxiv.org/abs/2102.05426), for instance, also uses Fisher
information to measure sensitivity to quantisation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prumux.optimizer.base.environment import int8_saturates
from prumux.optimizer.data.tokenize import groups_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.torch_ops import TorchOps
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.tasks.fisher import signs

ROWS = 128
"""Number of fit rows for estimating the divergence."""
BATCH = 32


@dataclass(frozen=True)
class _Outputs:
    output: Tensor
    error: Tensor


class _RecordingOps(TorchOps):
    """Records the output of each linear map, and the error that int8 would cause in it."""

    def apply(self, name: str, x: Tensor) -> Tensor:
        """Apply the linear map, and record its output and its int8 error."""
        y, host = super().apply(name, x), self.weights
        assert isinstance(host, _RecordingModule)
        if name not in host.names:
            return y
        if not y.requires_grad:
            y.requires_grad_()
        with torch.no_grad():
            weight = self.p(f"{name}.weight")
            error = _activations(x) @ _weights(weight).T - x @ weight.T
        host.seen[name] = _Outputs(y, error)
        return y


class _RecordingModule(EncoderModule):
    reading = _RecordingOps

    def __init__(self, model: Model, names: Sequence[str]) -> None:
        super().__init__(model)
        self.names = frozenset(names)
        self.seen: dict[str, _Outputs] = {}


def divergence(model: Model, names: Sequence[str], ctx: Context) -> dict[str, float]:
    """KL divergence in nats per row, for each linear map, if only this map runs in int8.

    Args:
        model: a model without masks.
        names: linear maps, such as `layers.0.ffn.up`.
        ctx: contains the fit rows, of which the first `ROWS` are used.
    """
    rows = ctx.fit.take(range(min(ROWS, len(ctx.fit))))
    groups = groups_of(rows, BATCH, model.encoder.slots)
    module = _RecordingModule(model, names).eval()
    random = torch.Generator().manual_seed(ctx.seed)
    total = dict.fromkeys(names, 0.0)
    with ctx.progress.task("sensitivity to int8", len(groups)) as step:
        for batch in groups:
            inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
            logits = module(**inputs)
            mask = inputs["attention_mask"].bool()
            real = None if model.encoder.pooled else model.task.counted(mask, batch.labels)
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
    """Choose the linear maps to keep in float: as few as the limit on divergence allows.

    Args:
        nats: the result of `divergence`.
        most: largest divergence in nats that may remain.
        share: share of the total divergence, 0 to 1, that must be removed in any case.

    Returns:
        Names of maps, the most sensitive first.

    Example:
        >>> worst({"a": 0.03, "b": 0.01, "c": 0.002}, most=0.005)
        ('a', 'b')
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
    """Quantise to uint8 and back, with one scale per tensor, as ONNX Runtime does."""
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    return ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale


def _weights(weight: Tensor) -> Tensor:
    """Quantise to int8 or to the 7 bits of `int8.lower`, and back; one scale per output."""
    most = 63 if int8_saturates() else 127
    scale = (weight.abs().amax(1, keepdim=True) / most).clamp(min=1e-12)
    return (weight / scale).round().clamp(-most, most) * scale
