"""What the torch module promises: padding, purity, pool-early, positions, factors."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.sizes import Branch
from prumux.optimizer.model.torch_ops import Factors, position_ids
from tests.helpers.factory import Family, Kind, random_batch, random_model
from tests.helpers.masking import logits, masked, random_masks, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)


def tiny(family: Family, task: Kind = "text-classification") -> Model:
    return random_model(family, heads=(3, 2, 3), ffn=(5, 6, 7), hidden=12, task=task)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_stands_in_padding_changes_nothing(family: Family, task: Kind) -> None:
    model = tiny(family, task)
    batch = random_batch(model, rows=6)
    expected = logits(model, batch)
    assert float(expected.std()) > 0.05
    rng = np.random.default_rng(1)
    for _ in range(3):
        junk = rng.integers(0, model.encoder.vocab, batch.input_ids.shape)
        types = batch.token_type_ids
        if types is not None:
            noise = rng.integers(0, model.encoder.token_types, types.shape)
            types = np.where(batch.attention_mask == 1, types, noise)
        ids = np.where(batch.attention_mask == 1, batch.input_ids, junk)
        other = replace(batch, input_ids=ids, token_type_ids=types)
        assert worst(logits(model, other), expected) < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_more_padding_changes_nothing(family: Family) -> None:
    model = tiny(family)
    batch = random_batch(model, rows=4, length=6)

    def wider(x: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(x, ((0, 0), (0, 5)), constant_values=fill)

    types = batch.token_type_ids
    other = replace(
        batch,
        input_ids=wider(batch.input_ids, model.encoder.pad_id),
        attention_mask=wider(batch.attention_mask, 0),
        token_type_ids=None if types is None else wider(types, 0),
    )
    assert worst(logits(model, other), logits(model, batch)) < 1e-5


def test_parameters_come_in_one_order_however_weights_were_stored() -> None:
    """Checkpoints of training are read back by position."""
    model = tiny("bert")
    turned = replace(model, weights=dict(sorted(model.weights.items(), reverse=True)))
    a, b = (list(dict(EncoderModule(x).named_parameters())) for x in (model, turned))
    assert a == b


@pytest.mark.parametrize("family", FAMILIES)
def test_no_tensor_of_the_caller_is_changed(family: Family) -> None:
    model = tiny(family)
    model = replace(model, masks=random_masks(model.encoder, seed=5))
    batch = random_batch(model)
    given = [*model.weights.values(), *model.masks.heads, *model.masks.ffn, model.masks.hidden]
    before = [x.clone() for x in given]
    arrays = {name: x.copy() for name, x in batch.inputs().items()}
    run(EncoderModule(model).train(), batch.inputs())
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(np.array_equal(x, arrays[name]) for name, x in batch.inputs().items())
    assert not any(x.requires_grad for x in model.weights.values())


@pytest.mark.parametrize("heads", [(3, 2, 3), (3, 2, 0), (0, 3, 0), (0, 0, 0)])
@pytest.mark.parametrize("family", FAMILIES)
def test_pool_early_is_exact(family: Family, heads: tuple[int, ...]) -> None:
    model = random_model(family, heads=heads, ffn=(5, 0, 7), hidden=12)
    early = replace(model, encoder=replace(model.encoder, pool_early=True))
    batch = random_batch(model)
    assert worst(logits(early, batch), logits(model, batch)) < 1e-6
    for seed in range(4):
        one, two = masked(model, seed), masked(early, seed)
        assert worst(logits(two, batch), logits(one, batch)) < 1e-6


def test_positions_of_roberta_skip_padding() -> None:
    encoder = tiny("roberta").encoder
    ids = torch.tensor([[5, 6, 7, 1, 1], [1, 1, 9, 8, 1], [1, 1, 1, 1, 1]])
    expected = [[2, 3, 4, 1, 1], [1, 1, 2, 3, 1], [1, 1, 1, 1, 1]]
    assert position_ids(encoder, ids).tolist() == expected
    assert position_ids(tiny("bert").encoder, ids).tolist() == [[0, 1, 2, 3, 4]]


def test_roberta_padded_on_the_left_gives_the_same() -> None:
    model = tiny("roberta")
    right = random_batch(model, rows=5, length=7)

    def flipped(x: np.ndarray) -> np.ndarray:
        lengths = right.attention_mask.sum(1)
        return np.stack([np.roll(row, 7 - n) for row, n in zip(x, lengths, strict=True)])

    left = Batch(
        right.rows,
        flipped(right.input_ids),
        flipped(right.attention_mask),
        None if right.token_type_ids is None else flipped(right.token_type_ids),
        None,
    )
    tokens = random_model("roberta", heads=(3,), ffn=(5,), hidden=12, task=KINDS[1])
    assert worst(logits(tokens, left), logits(tokens, right)) < 1e-5


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_factors_with_a_row_axis_equal_those_without(family: Family, task: Kind) -> None:
    model = tiny(family, task)
    module, batch = EncoderModule(model), random_batch(model)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    random = torch.Generator().manual_seed(0)
    heads = tuple(torch.rand(x.heads, generator=random) for x in model.encoder.layers)
    ffn = tuple(torch.rand(x.ffn, generator=random) for x in model.encoder.layers)
    rows = len(batch.rows)
    wide = Factors(
        tuple(x.expand(rows, -1) for x in heads), tuple(x.expand(rows, -1) for x in ffn), None
    )
    plain = module(**inputs, factors=Factors(heads, ffn, None))
    assert worst(module(**inputs, factors=wide), plain) < 1e-6
    assert worst(module(**inputs), plain) > 1e-3


def test_each_row_has_its_own_factors() -> None:
    model = tiny("bert")
    module, batch = EncoderModule(model), random_batch(model, rows=3)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    heads = tuple(torch.rand(3, x.heads) for x in model.encoder.layers)
    ffn = tuple(torch.rand(3, x.ffn) for x in model.encoder.layers)
    together = module(**inputs, factors=Factors(heads, ffn, None))
    for r in range(3):
        own = Factors(tuple(x[r] for x in heads), tuple(x[r] for x in ffn), None)
        one = module(**{k: v[r : r + 1] for k, v in inputs.items()}, factors=own)
        assert worst(together[r], one[0]) < 1e-5


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_factors_with_a_row_axis(family: Family, task: Kind) -> None:
    """Every row has its own; the same for all rows is as without the axis."""
    model = tiny(family, task)
    module, batch = EncoderModule(model), random_batch(model, rows=3)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    hidden = torch.rand(3, 12, generator=torch.Generator().manual_seed(0)) + 0.5
    together = module(**inputs, factors=Factors((), (), hidden))
    for r in range(3):
        own = Factors((), (), hidden[r])
        assert worst(module(**inputs, factors=own)[r], together[r]) < 1e-5
    assert worst(module(**inputs), together) > 1e-3


def test_factors_move_with_the_weights() -> None:
    model = replace(tiny("bert"), masks=random_masks(tiny("bert").encoder, 3, gone=0.0))
    module = EncoderModule(model).to("meta")
    z = module.factors
    assert z.hidden is not None
    assert {x.device.type for x in (*z.heads, *z.ffn, z.hidden)} == {"meta"}
    assert len(z.heads) == len(z.ffn) == 3
    assert EncoderModule(tiny("bert")).to("meta").factors.hidden is None


def test_zero_factors_equal_masks() -> None:
    model = masked(tiny("bert"), seed=1, gone=0.0)
    batch = random_batch(model)
    dense = replace(model, masks=tiny("bert").masks)
    zeros = Factors(
        tuple(m.float() for m in model.masks.heads),
        tuple(m.float() for m in model.masks.ffn),
        None,
    )
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    assert worst(EncoderModule(dense)(**inputs, factors=zeros), logits(model, batch)) < 1e-6


def test_branches_are_those_that_are_left() -> None:
    model = random_model(heads=(3, 0), ffn=(0, 5), hidden=12)
    left = EncoderModule(model).alive
    assert left == [Branch(0, "attention"), Branch(1, "ffn")]
    assert [b.output for b in left] == ["layers.0.attention.output", "layers.1.ffn.down"]
