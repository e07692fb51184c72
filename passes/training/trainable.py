"""The trainable copy of a model: its parameter groups, weights and validation rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.pipeline.context import Context

TABLES = (
    "embeddings.word.weight",
    "embeddings.position.weight",
    "embeddings.token_type.weight",
)
"""Tables that are not trained. Entries of unused tokens would not follow the other weights."""
CHECK_ROWS = 1024
MUX_RATE = 3.0
"""Learning rate of mux and demux, relative to the rate of all other weights."""


def trainable(model: Model, device: str) -> EncoderModule:
    """Copy the model; all weights except embedding tables and fixed keys need gradients."""
    copied = {name: tensor.clone() for name, tensor in model.weights.items()}
    module = EncoderModule(replace(model, weights=copied)).to(device)
    mux = model.encoder.mux
    frozen = TABLES if mux is None or mux.variant == "learned" else (*TABLES, "mux.keys")
    for name, p in module.named_parameters():
        p.requires_grad = name not in frozen
    return module


def parameter_groups(module: EncoderModule, lr: float) -> list[dict[str, Any]]:
    """Group the trained parameters. Mux and demux are new: they get a higher learning rate."""
    old, new = list[nn.Parameter](), list[nn.Parameter]()
    for name, p in module.named_parameters():
        if p.requires_grad:
            (new if name.startswith(("mux.", "demux.")) else old).append(p)
    found = [{"params": old, "lr": lr}, {"params": new, "lr": lr * MUX_RATE}]
    return [group for group in found if group["params"]]


def weights_of(module: EncoderModule) -> dict[str, Tensor]:
    """A copy of every weight, on the CPU."""
    return {k: p.detach().cpu().clone() for k, p in module.named_parameters()}


def validation_rows(rows: Encoded, ctx: Context) -> Encoded:
    """Rows to compare checkpoints on: select rows, or `rows` if there are no select rows."""
    rows = rows if ctx.select is None else ctx.select
    return rows.take(range(min(CHECK_ROWS, len(rows))))
