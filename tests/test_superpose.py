"""A copy of heads and FFN units for every slot."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from prumux.export.graph import build
from prumux.export.graphfile import verify
from prumux.export.ort import OrtEngine
from prumux.optimizer.ir import Model
from prumux.optimizer.module import EncoderModule, run
from prumux.optimizer.pipeline import Pipeline
from prumux.passes.slice import slice_model
from prumux.passes.superpose import READS, superposed
from tests.factory import make_context, random_batch, random_model
from tests.masking import masked, worst


def uneven() -> Model:
    return random_model(heads=(3, 0, 4), ffn=(5, 6, 0), hidden=16, head_dim=4)


def drawn(*size: int) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(sum(size)))


def signs(n: int) -> Tensor:
    return torch.where(drawn(n, 16) < 0, -1.0, 1.0)


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("at", [0, 1])
def test_every_copy_does_for_its_slot_what_the_units_did_for_a_row(n: int, at: int) -> None:
    given, keys = uneven(), signs(n)
    one, many = EncoderModule(given), EncoderModule(superposed(given, keys, at))
    mixed = [x for x in one.branches() if x.index >= at]
    for branch in mixed:
        scale = n if branch == mixed[0] else math.sqrt(n)
        state, out = drawn(7, 16), f"{branch.output}."
        inner = drawn(7, one.get_parameter(out + "weight").shape[1])
        aim = one.linear(branch.output, inner) - one.get_parameter(out + "bias")
        for i, key in enumerate(keys):
            own = state * key / scale  # what slot i has in a mixed row
            for name in (f"{branch.name}.{x}" for x in READS[branch.kind]):
                found = many.linear(name, own).chunk(n, -1)[i]
                assert worst(found, one.linear(name, state)) < 1e-5
            beside = [torch.zeros_like(inner)] * n
            whole = torch.cat([*beside[:i], inner, *beside[i + 1 :]], -1)
            written = many.linear(branch.output, whole) - many.get_parameter(out + "bias")
            assert worst(written * key * scale, aim) < 1e-5


def test_layers_before_are_as_they_were() -> None:
    given = uneven()
    whole = superposed(given, signs(2), 1)
    assert whole.encoder.layers[0] == given.encoder.layers[0]
    assert [(x.heads, x.ffn) for x in whole.encoder.layers[1:]] == [(0, 12), (8, 0)]
    same = [k for k in given.weights if k.startswith(("layers.0.", "embeddings.", "head."))]
    assert all(whole.weights[k] is given.weights[k] for k in same)


def test_marked_before_is_sliced_before() -> None:
    given = uneven()
    marked = masked(given, seed=3)
    text, ctx = "mux{n=2 units=own}", make_context(given)
    late = slice_model(Pipeline.parse(text).run(marked, ctx))
    early = Pipeline.parse(text).run(slice_model(marked), ctx)
    assert late.encoder == early.encoder
    batch = random_batch(given, rows=4, length=8)
    found, expected = (run(EncoderModule(x).eval(), batch.inputs()) for x in (late, early))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def distances(model: Model, dense: Model) -> list[float]:
    """How far each slot's last state is from the dense one, relative to its variance."""
    batch, states = random_batch(dense, rows=64, length=6).inputs(), []
    inputs = {k: torch.as_tensor(x) for k, x in batch.items()}
    for module in (EncoderModule(model), EncoderModule(dense)):
        x = module.embed(inputs["input_ids"], inputs.get("token_type_ids"), None)
        *_, (_, x) = module.states(x, inputs["attention_mask"])
        states.append(x[:, 0])
    mixed, aim = states
    found = mixed[:, None] * model.weights["mux.keys"] * math.sqrt(2)
    errors = (found.flatten(0, 1) - aim).square().mean(-1).view(-1, 2).mean(0)
    return (errors / aim.var()).tolist()


def test_no_slot_starts_from_nothing() -> None:
    dense = random_model(heads=(2, 2), ffn=(16, 16), hidden=256, head_dim=8)
    ctx = make_context(dense)
    with torch.no_grad():
        shared, own = (
            distances(Pipeline.parse(f"mux{{n=2 units={x}}}").run(dense, ctx), dense)
            for x in ("shared", "own")
        )
    assert max(own) < 1.2 * min(own)
    assert max(own) < 0.9 * max(shared)


@pytest.mark.parametrize("at", [0, 2])
def test_the_graph_agrees(at: int) -> None:
    given = uneven()
    model = Pipeline.parse(f"mux{{n=3 at={at} units=own}}").run(given, make_context(given))
    proto = build(model)
    verify(proto)
    batch = random_batch(model, rows=6, length=7)
    found = OrtEngine(proto.SerializeToString(), 1).run(batch.inputs())
    expected = run(EncoderModule(model).eval(), batch.inputs())
    np.testing.assert_allclose(found, expected, atol=1e-4)
