"""Masked and sliced models agree: a gate, not a hope."""

from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import GateError, PassError
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes import slice as slice_module
from prumux.passes.slice import Slice, slice_model
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import logits, masked, random_masks, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)
SEEDS = st.integers(0, 2**31)
CALM = settings(max_examples=250, deadline=None, derandomize=True)


def tiny(family: Family = "bert", task: Kind = "text-classification", seed: int = 0) -> Model:
    return random_model(family, heads=(3, 2), ffn=(6, 5), hidden=12, task=task, seed=seed)


@CALM
@given(
    family=st.sampled_from(FAMILIES),
    task=st.sampled_from(KINDS),
    seed=SEEDS,
    keep=st.sampled_from([0.2, 0.6, 0.95]),
    gone=st.sampled_from([0.0, 0.3, 0.9]),
    early=st.booleans(),
)
def test_masked_equals_sliced(
    *, family: Family, task: Kind, seed: int, keep: float, gone: float, early: bool
) -> None:
    model = tiny(family, task, seed)
    encoder = replace(model.encoder, pool_early=early and model.encoder.pooled)
    masks = random_masks(encoder, seed, keep=keep, gone=gone)
    model = replace(model, encoder=encoder, masks=masks)
    sliced = slice_model(model)
    sliced.verify()
    assert sliced.encoder == masks.sizes(encoder)
    assert sliced.masks.all_true
    batch = random_batch(model, rows=4, length=9, seed=seed)
    assert worst(logits(sliced, batch), logits(model, batch)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_masked_is_the_same_object(family: Family) -> None:
    model = tiny(family)
    assert slice_model(model) is model
    assert Slice().run(model, make_context(model)) is model


def test_everything_gone_leaves_embedding_and_head() -> None:
    model = tiny()
    nothing = Masks(
        heads=tuple(torch.zeros_like(m) for m in model.masks.heads),
        ffn=tuple(torch.zeros_like(m) for m in model.masks.ffn),
        hidden=model.masks.hidden,
    )
    model = replace(model, masks=nothing)
    sliced = slice_model(model)
    assert not [name for name in sliced.weights if name.startswith("layers.")]
    assert (
        worst(logits(sliced, random_batch(model)), logits(model, random_batch(model))) < 1e-6
    )


def test_the_given_model_stays_as_it_is() -> None:
    model = masked(tiny(), seed=4)
    before = {name: x.clone() for name, x in model.weights.items()}
    slice_model(model)
    assert all(torch.equal(x, before[name]) for name, x in model.weights.items())


def test_the_receipt_says_what_is_left() -> None:
    model = masked(tiny(), seed=4)
    sliced = Pipeline.parse("slice").run(model, make_context(model))
    receipt = sliced.history[-1]
    assert receipt.notes["heads"] == [x.heads for x in sliced.encoder.layers]
    assert receipt.notes["hidden"] == 12
    assert receipt.parameters_after < receipt.parameters_before


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_the_gate_stops_a_model_that_differs(
    monkeypatch: pytest.MonkeyPatch, task: Kind, value: float
) -> None:
    model = masked(tiny(task=task), seed=4)
    ctx = make_context(model)

    def wrong(model: Model) -> Model:
        sliced = slice_model(model)
        bias = sliced.weights["head.output.bias"] + value
        return replace(sliced, weights={**sliced.weights, "head.output.bias": bias})

    good = slice_model(model)
    Slice().ensures(model, good, ctx)
    with pytest.raises(GateError, match="masked and sliced models differ by") as caught:
        Slice().ensures(model, wrong(model), ctx)
    assert "more than 1e-04; this is a fault of prumux" in str(caught.value)
    assert caught.value.exit_code == 4
    monkeypatch.setattr(slice_module, "slice_model", wrong)
    with pytest.raises(PassError, match=r"pass 1 \(slice\) failed") as stopped:
        Pipeline.parse("slice").run(model, ctx)
    assert stopped.value.exit_code == 4


def test_the_gate_has_nothing_to_check_without_a_change() -> None:
    model = tiny()
    Slice().ensures(model, model, make_context(model))
    Slice().ensures(masked(model, 1), model, replace(make_context(model), workload=()))
