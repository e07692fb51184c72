r"""The curvature of the loss in a branch's output map, as two small matrices (K-FAC).

The method is from Martens and Grosse, https://arxiv.org/abs/1503.05671. If the map of a branch
changes by dW, its output at position t changes by dW x_t. To second order, the KL divergence
from the model's own prediction p, over R rows and C classes, is half of

    1/R * sum_r sum_c p_rc * (sum_t g_rct^T dW x_rt)^2,    g_rct = d log p_rc / d y_rt

Two assumptions reduce this expression to small matrices. First, positions are not correlated.
Second, only the size of g, w_rt = sum_c p_rc |g_rct|^2, depends on the position, and the
direction of g does not. The result is tr(G dW H dW^T) with

    G = 1/R * sum_rct p_rc g_rct g_rct^T      H = sum_rt w_rt x_rt x_rt^T / sum_rt w_rt

So a position that the rest of the model does not read has almost no weight. No labels are
needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prumux.optimizer.base.bfloat16 import autocast
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Branch
from prumux.optimizer.model.torch_ops import TorchOps
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.tasks.fisher import signs

SHARED_WEIGHT = 0.05
"""Share of a row's weight that is spread evenly over its positions. It stabilises H if one
position has all of the weight."""
FLOOR = 1e-20
"""Least weight of a position. It keeps H defined if all gradients are 0."""


@dataclass(frozen=True, eq=False)
class Curvature:
    """The curvature of a branch with an output map [D, M]: float32 tensors on the CPU."""

    inputs: Tensor
    """H, [M, M]."""
    mean: Tensor
    """Weighted mean input, [M]."""
    root: Tensor
    """Symmetric square root of G, [D, D]. Errors of all rows of `root @ W` count equally."""


def curvature(model: Model, groups: Sequence[Batch], ctx: Context) -> dict[Branch, Curvature]:
    """The curvature of every branch with units, from one forward pass over `groups`."""
    module = _Tapped(model).to(ctx.device).eval()
    sums = {branch: _Sums() for branch in module.alive}
    random = torch.Generator().manual_seed(ctx.seed)
    with ctx.progress.task("curvature", len(groups)) as step:
        for batch in groups:
            inputs = {k: torch.as_tensor(v).to(ctx.device) for k, v in batch.inputs().items()}
            with autocast(ctx.device):
                logits = module(**inputs).float()
            real = inputs["attention_mask"].bool()
            taps = [tap for _, tap in module.taps.values()]
            scored = None if model.encoder.pooled else model.task.counted(real, batch.labels)
            weight = signs(logits, scored, model.encoder.slots > 1, random)
            each_loss = model.task.fisher_scalars(logits, weight, random)
            grads = [torch.autograd.grad(x, taps, retain_graph=True) for x in each_loss]
            for i, (branch, (inner, tap)) in enumerate(module.taps.items()):
                each = [g[i].float() for g in grads]
                # A position of a mixed row is real if any row of its group has a token there.
                mixed = real.view(len(tap), -1, real.shape[1]).any(1)
                sums[branch].add(inner.float(), each, mixed[:, : tap.shape[1]])
            step()
    rows = sum(len(batch.rows) for batch in groups)
    return {branch: x.result(rows) for branch, x in sums.items()}


class _TappedOps(TorchOps):
    """Keep the input of every output map, and add a zero tensor to its output.

    The gradient of the zero tensor is the gradient of the output.
    """

    def write(self, branch: Branch, inner: Tensor, x: Tensor) -> Tensor:
        """See `TorchOps.write`."""
        y = super().write(branch, inner, x)
        tap = torch.zeros_like(y, requires_grad=True)
        assert isinstance(self.weights, _Tapped)
        self.weights.taps[branch] = (inner.detach(), tap)
        return y + tap


class _Tapped(EncoderModule):
    reading = _TappedOps

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        self.taps: dict[Branch, tuple[Tensor, Tensor]] = {}


class _Sums:
    """Running sums of a branch's curvature over batches."""

    def __init__(self) -> None:
        self.inputs: Tensor | float = 0.0
        self.mean: Tensor | float = 0.0
        self.outputs: Tensor | float = 0.0
        self.weight = 0.0

    def add(self, inner: Tensor, grads: Sequence[Tensor], real: Tensor) -> None:
        """Add rows: inner [B, T, M], gradients [B, T, D] of each loss, `real` bool [B, T]."""
        each = [g * real[..., None] for g in grads]
        weight = torch.stack([g.square().sum(-1) for g in each]).sum(0)
        shared = weight.sum(1, keepdim=True) / real.sum(1, keepdim=True)
        weight = (weight + SHARED_WEIGHT * shared + FLOOR)[real]
        x = inner[real] * weight.sqrt()[:, None]
        self.inputs = self.inputs + (x.T @ x).cpu()
        self.mean = self.mean + (weight @ inner[real]).cpu()
        self.outputs = self.outputs + sum((g[real].T @ g[real]).cpu() for g in each)
        self.weight += float(weight.sum())

    def result(self, rows: int) -> Curvature:
        h, mean, g = map(torch.as_tensor, (self.inputs, self.mean, self.outputs))
        values, vectors = torch.linalg.eigh(g.double() / rows)
        root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
        return Curvature(h / self.weight, mean / self.weight, root.float())
