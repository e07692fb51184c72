"""Models side by side, one for each slot."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import verify
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes.slice import slice_model
from tests.helpers.factory import make_context, random_batch, random_model
from tests.helpers.masking import masked, worst


def uneven(family: Any = "bert", task: Any = "text-classification") -> Model:
    sizes = {"hidden": 16, "head_dim": 4}
    return random_model(family, heads=(3, 0, 4), ffn=(5, 6, 0), task=task, **sizes)


def apart(model: Model, n: int = 2, demux: int = 1) -> Model:
    text = f"mux{{n={n} demux={demux} units=apart}}"
    return Pipeline.parse(text).run(model, make_context(model))


def last_states(model: Model, batch: Batch, copies: int = 1) -> Tensor:
    inputs: dict[str, Any] = {
        k: torch.as_tensor(x.repeat(copies, 0)) for k, x in batch.inputs().items()
    }
    module = EncoderModule(model)
    ops = module.ops(**inputs)
    with torch.no_grad():
        *_, (_, x) = module.states(ops, ops.embed())
    return x


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("family", ["bert", "electra"])
def test_copies_of_a_row_pass_through_as_the_row_did(family: Any, n: int) -> None:
    given = uneven(family)
    batch = random_batch(given, rows=4, length=7)
    found = last_states(apart(given, n), batch, n)
    real = torch.as_tensor(batch.attention_mask)[..., None]
    assert worst(found * real, last_states(given, batch).repeat(1, 1, n) * real) < 1e-5


@pytest.mark.parametrize("demux", [0, 1, 2])
def test_taking_apart_begins_with_the_own_block(demux: int) -> None:
    given = uneven()
    wide = apart(given, 3, demux)
    batch = random_batch(given, rows=6, length=7)
    states = last_states(given, batch)[:, 0]
    mask: dict[str, Any] = {k: torch.as_tensor(x) for k, x in batch.inputs().items()}
    with torch.no_grad():
        ops = EncoderModule(wide).ops(**mask)
        found = ops.unmix(states.reshape(2, -1)).view(6, 3, 16)
    if not demux:
        found = found.sum(1, keepdim=True) / 3
    error = (found - states[:, None]).square().mean((0, 2)) / states.var()
    assert error.max() < 0.1
    alone = torch.randn(6, 16, generator=torch.Generator().manual_seed(0))
    assert (alone[:, None] - states[:, None]).square().mean() / states.var() > 1


def test_rows_disturb_each_other_less_than_through_shared_units() -> None:
    given = random_model(heads=(4, 4), ffn=(32, 32), hidden=64, head_dim=8)
    batch = random_batch(given, rows=32, length=7)
    expected = run(EncoderModule(given), batch.inputs())
    shared = Pipeline.parse("mux{n=2}").run(given, make_context(given))
    errors = [
        np.abs(run(EncoderModule(x), batch.inputs()) - expected).mean()
        for x in (apart(given), shared)
    ]
    assert errors[0] < 0.5 * errors[1]


def test_marked_before_is_sliced_before() -> None:
    marked = masked(uneven(), seed=3)
    early = apart(slice_model(marked))
    late = slice_model(apart(marked))
    assert late.encoder == early.encoder
    batch = random_batch(marked, rows=4, length=8)
    found, expected = (run(EncoderModule(x).eval(), batch.inputs()) for x in (late, early))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_it_knows_which_dimensions_of_the_dense_model_it_has() -> None:
    given = uneven()
    ctx = make_context(given)
    narrow = Pipeline.parse("prune-hidden{keep=8},slice").run(given, ctx)
    wide = apart(narrow)
    assert narrow.kept_hidden is not None
    assert wide.kept_hidden is not None
    assert wide.kept_hidden.tolist() == narrow.kept_hidden.tolist() * 2
    refitted = Pipeline.parse("reconstruct,distill{epochs=1 augment=0}").run(wide, ctx)
    assert refitted.encoder == wide.encoder


@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_the_graph_agrees(family: Any, task: Any) -> None:
    model = apart(uneven(family, task), 3)
    proto = build(model)
    verify(proto)
    batch = random_batch(model, rows=6, length=7)
    found = OrtEngine(proto.SerializeToString(), 1).run(batch.inputs())
    expected = run(EncoderModule(model).eval(), batch.inputs())
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("text", ["", "prune-hidden{keep=8},slice,"])
def test_masks_can_be_learnt_after_it(text: str) -> None:
    given = random_model(heads=(2, 2), ffn=(8, 8), hidden=16, head_dim=4)
    learnt = "learn-masks{sparsity=0.5 epochs=1 augment=0},slice"
    pipeline = Pipeline.parse(f"{text}mux{{n=2 units=apart}},{learnt}")
    pipeline.run(given, make_context(given)).verify()


def test_one_row_is_no_mixing() -> None:
    given = random_model(heads=(4, 4), hidden=16)
    after = Pipeline.parse("mux{n=1 at=1 units=apart}").run(given, make_context(given))
    assert after.encoder == given.encoder


def test_what_it_refuses() -> None:
    model = random_model(heads=(4, 4), hidden=16)
    ctx = make_context(model)
    for text, message in {
        "mux{n=2 at=1 units=apart}": r"mixed at 0, not 1; use mux\{n=2 units=apart\}",
        "mux{n=2 variant=fixed units=apart}": r"not fixed ones; use mux\{n=2 units=apart\}",
        "prune-hidden{keep=8},mux{n=2 units=apart}": r"16 dimensions, 8 marked.*use slice,mux",
    }.items():
        with pytest.raises(PassError, match=message):
            Pipeline.parse(text).run(model, ctx)
