"""Which shapes are timed, and what they weigh."""

import pytest

from prumux.optimizer.timing.calibration import knots, plan, uneven
from prumux.optimizer.timing.calibration import random_model as shaped
from tests.helpers.factory import make_context, random_model


@pytest.mark.parametrize("pool_early", [False, True])
def test_the_plan_says_what_every_knot_costs(pool_early: bool) -> None:
    full = random_model("bert", pool_early=pool_early).encoder
    found = plan(full, seed=0)
    assert found == plan(full, seed=0)
    assert len(set(map(str, found))) == len(found)
    assert {x.pool_early for x in found} == {pool_early}
    assert full in found
    assert any(x.last_attention < 0 and x.layers[0].ffn == 0 for x in found)
    assert knots(12, (1 / 4, 1 / 2, 1.0)) == (1, 3, 6, 12)
    assert knots(2, (1 / 8, 1 / 2, 1.0)) == (1, 2)
    assert knots(0, (1.0,)) == ()


def test_uneven_models_are_uneven() -> None:
    full = random_model("bert").encoder
    found = uneven(full, 30, seed=0)
    heads = [x.heads for e in found for x in e.layers]
    units = [x.ffn for e in found for x in e.layers]
    assert set(heads) == set(range(13))
    assert min(units) == 0
    assert max(units) == 64
    assert all(sum(x.heads + x.ffn for x in e.layers) for e in found)
    assert found[:5] != uneven(full, 30, seed=1)[:5]


def test_random_weights_share_their_numbers() -> None:
    """A shape to be timed holds its largest weight in memory, not their sum."""
    model = random_model("bert")
    made = shaped(model.encoder, make_context(model))
    made.verify()
    assert len({x.untyped_storage().data_ptr() for x in made.weights.values()}) == 1
    (stored,) = {x.untyped_storage().nbytes() for x in made.weights.values()}
    assert stored == 4 * max(x.numel() for x in made.weights.values())
    assert all(float(x.abs().max()) > 0 for x in made.weights.values())
