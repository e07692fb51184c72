"""Steps that are computed once for the same inputs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.store import Store
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.registry import find_pass, parse_target
from tests.helpers.factory import make_context, random_model

MODEL = random_model("bert")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return replace(make_context(MODEL), store=Store(tmp_path))


def test_the_same_inputs_are_computed_once(ctx: Context) -> None:
    made: list[int] = []

    def make() -> Mapping[str, Tensor]:
        made.append(1)
        return {"x": torch.tensor([float(len(made))])}

    inputs = MODEL, ctx.fit, 0.5
    first, again = (ctx.cached("thing", inputs, make)["x"] for _ in range(2))
    assert first == again == 1
    assert ctx.cached("other", inputs, make)["x"] == 2
    assert ctx.cached("thing", (MODEL, ctx.fit, 0.6), make)["x"] == 3
    assert ctx.cached_json("counts", inputs, lambda: [len(made)]) == [3]
    assert ctx.cached_json("counts", inputs, lambda: [0]) == [3]


def test_an_entry_tells_inputs_apart(ctx: Context) -> None:
    masks = Masks.full(MODEL.encoder)
    gone = replace(masks, hidden=torch.zeros_like(masks.hidden))
    heavier = {k: x + 1 for k, x in MODEL.weights.items()}
    prune: Any = find_pass("prune")
    many = [
        ctx.entry("a"),
        ctx.entry("b"),
        replace(ctx, seed=ctx.seed + 1).entry("a"),
        ctx.entry("a", MODEL),
        ctx.entry("a", replace(MODEL, weights=heavier)),
        ctx.entry("a", replace(MODEL, masks=gone)),
        ctx.entry("a", replace(MODEL, encoder=replace(MODEL.encoder, norm_eps=1e-6))),
        ctx.entry("a", ctx.fit),
        ctx.entry("a", ctx.fit.take([0])),
        ctx.entry("a", prune(sparsity=0.5)),
        ctx.entry("a", prune(sparsity=0.6)),
        ctx.entry("a", parse_target("onnx")),
        ctx.entry("a", 1, 2),
        ctx.entry("a", 12),
    ]
    assert len(set(many)) == len(many)
    assert ctx.entry("a", prune(speedup=2)) == ctx.entry("a", prune(speedup=2.0))
    assert ctx.entry("a", MODEL) == ctx.entry("a", replace(MODEL, notes={"seen": 1}))
