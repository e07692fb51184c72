"""Sizes, names and shapes, and what `verify` says of a model that does not fit them."""

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.errors import VerifyError
from prumux.optimizer.model.cost import (
    block_weights,
    count,
    unit_macs,
    unit_weights,
)
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Branch, Layer
from prumux.optimizer.model.weights import expected_shapes
from tests.helpers.factory import Family, random_model
from tests.helpers.masking import masked, random_masks

FAMILIES: tuple[Family, ...] = get_args(Family)
UP = "layers.1.ffn.up.weight"


def tiny(family: Family = "bert") -> Model:
    return random_model(family, heads=(3, 3), ffn=(5, 5), hidden=12)


def with_weights(model: Model, **changes: Tensor | None) -> Model:
    weights = dict(model.weights)
    for name, tensor in changes.items():
        weights.pop(name, None)
        if tensor is not None:
            weights[name] = tensor
    return replace(model, weights=weights)


def with_masks(model: Model, **changes: object) -> Model:
    return replace(model, masks=replace(model.masks, **changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_verifies(family: Family) -> None:
    model = tiny(family)
    model.verify()
    masked(model, seed=3).verify()
    assert model.stage == "dense"
    assert masked(model, seed=3).stage == "masked"


BROKEN: dict[str, tuple[Callable[[Model], Model], str]] = {
    "missing": (lambda m: with_weights(m, **{UP: None}), f"missing: {UP}"),
    "extra": (lambda m: with_weights(m, odd=torch.ones(1)), "extra: odd"),
    "both": (
        lambda m: with_weights(m, odd=torch.ones(1), **{UP: None}),
        f"missing: {UP}, extra: odd",
    ),
    "many": (lambda m: replace(m, weights={}), "embeddings.position.weight and 38 more"),
    "shape": (
        lambda m: with_weights(m, **{UP: torch.zeros(4, 12)}),
        f"weight '{UP}' has shape (4, 12), its sizes say (5, 12)",
    ),
    "dtype": (
        lambda m: with_weights(m, **{UP: torch.zeros(5, 12, dtype=torch.float16)}),
        f"weight '{UP}' is torch.float16, not float32",
    ),
    "mask length": (
        lambda m: with_masks(m, heads=(m.masks.heads[0], torch.ones(4).bool())),
        "mask 'layers.1.heads' is torch.bool (4,), its sizes say torch.bool (3,)",
    ),
    "mask type": (
        lambda m: with_masks(m, ffn=(torch.ones(5), m.masks.ffn[1])),
        "mask 'layers.0.ffn' is torch.float32 (5,)",
    ),
    "hidden mask": (
        lambda m: with_masks(m, hidden=torch.ones(11).bool()),
        "mask 'hidden' is torch.bool (11,), its sizes say torch.bool (12,)",
    ),
    "too few masks": (
        lambda m: with_masks(m, heads=m.masks.heads[:1]),
        "1 heads masks for 2 layers",
    ),
    "too many masks": (
        lambda m: with_masks(m, ffn=m.masks.ffn * 2),
        "4 ffn masks for 2 layers",
    ),
    "labels": (
        lambda m: replace(m, task=replace(m.task, labels=("a", "b", "c"))),
        "3 label names for 2 labels",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_verify_names_what_is_wrong(name: str) -> None:
    damage, says = BROKEN[name]
    with pytest.raises(VerifyError) as caught:
        damage(tiny()).verify()
    assert says in str(caught.value)
    assert caught.value.exit_code == 4


def test_names_follow_the_sizes() -> None:
    shapes = expected_shapes(tiny().encoder)
    assert shapes["layers.0.attention.query.weight"] == (12, 12)
    assert shapes["layers.1.ffn.down.weight"] == (12, 5)
    assert shapes["head.dense.weight"] == (12, 12)
    assert shapes["head.output.bias"] == (2,)
    assert "embeddings.project.weight" not in shapes
    assert "embeddings.token_type.weight" not in expected_shapes(tiny("distilbert").encoder)
    electra = expected_shapes(tiny("electra").encoder)
    assert electra["embeddings.word.weight"] == (101, 6)
    assert electra["embeddings.project.weight"] == (12, 6)


def test_a_branch_that_is_gone_takes_its_norm_along() -> None:
    layers = (Layer(0, 5), Layer(3, 0))
    names = expected_shapes(replace(tiny().encoder, layers=layers))
    assert not [n for n in names if n.startswith(("layers.0.attention", "layers.1.ffn"))]
    assert [n for n in names if n.startswith("layers.1.attention.norm")]
    tokens = random_model(heads=(3,), ffn=(5,), hidden=12, task="token-classification")
    assert "head.dense.weight" not in tokens.weights


@pytest.mark.parametrize("family", FAMILIES)
def test_masks_give_the_sizes_after_slicing(family: Family) -> None:
    encoder = tiny(family).encoder
    assert Masks.full(encoder).all_true
    assert Masks.full(encoder).sizes(encoder) == encoder
    for seed in range(20):
        masks = random_masks(encoder, seed)
        after = masks.sizes(encoder)
        assert [x.heads for x in after.layers] == [int(m.sum()) for m in masks.heads]
        assert [x.ffn for x in after.layers] == [int(m.sum()) for m in masks.ffn]
        assert after.hidden == int(masks.hidden.sum())
        assert after.embedding == (6 if family == "electra" else after.hidden)
        assert masks.all_true == (after == encoder)


def test_the_last_attention() -> None:
    encoder = tiny().encoder
    assert encoder.last_attention == 1
    assert replace(encoder, layers=(Layer(3, 5), Layer(0, 5))).last_attention == 0
    assert replace(encoder, layers=(Layer(0, 5), Layer(0, 0))).last_attention == -1
    assert str(encoder) == "encoder{hidden=12 head_dim=4 heads=3,3 ffn=5,5}"


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_are_those_of_the_weights(family: Family) -> None:
    model = random_model(family, heads=(3, 0, 2), ffn=(5, 7, 0), hidden=12)
    cost, e = count(model.encoder, length=7), model.encoder
    assert cost.parameters == sum(x.numel() for x in model.weights.values())
    assert cost.size_bytes == 4 * cost.parameters == cost.to_json()["size_bytes"]
    units = (
        5 * unit_weights(e, Branch(0, "attention"))
        + 12 * unit_weights(e, Branch(0, "ffn"))
        + 4 * block_weights(e, Branch(0, "ffn"))
    )
    assert cost.encoder_parameters == units
    smaller = replace(e, layers=(Layer(0, e.layers[0].ffn), *e.layers[1:]))
    assert count(smaller, 7).macs == cost.macs - 3 * unit_macs(e, Branch(0, "attention"), 7)
    smaller = replace(e, layers=(Layer(e.layers[0].heads, 0), *e.layers[1:]))
    assert count(smaller, 7).macs == cost.macs - 5 * unit_macs(e, Branch(0, "ffn"), 7)
    early = replace(e, pool_early=True)
    saved = cost.macs - count(early, 7).macs
    assert saved == 2 * (2 * 12 * 4 + 2 * 7 * 4) * 6
