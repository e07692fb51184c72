"""The hard-concrete distribution against numeric integration, and which gates are kept."""

import math

import pytest
import torch
from torch import nn

from prumux.passes.gates.gates import Gates
from prumux.passes.gates.hard_concrete import (
    HIGH,
    LOW,
    binary_sample,
    keep_expected,
    mean,
    open_probability,
    open_value,
    probability_above,
    sample,
)

GRID = 200_000
POINTS = torch.tensor([LOW, -2.0, -0.3, 0.0, 1.1, 3.0, HIGH], dtype=torch.float64)


def drawn(log_alpha: float) -> torch.Tensor:
    """z at the midpoints of a fine grid of u: its mean is an integral over u."""
    u = (torch.arange(GRID, dtype=torch.float64) + 0.5) / GRID
    return sample(torch.tensor(log_alpha, dtype=torch.float64), u)


@pytest.mark.parametrize("log_alpha", POINTS.tolist())
def test_chances_and_mean_are_those_of_the_samples(log_alpha: float) -> None:
    z, at = drawn(log_alpha), torch.tensor(log_alpha, dtype=torch.float64)
    assert float((z != 0).double().mean()) == pytest.approx(
        float(open_probability(at)), abs=2e-5
    )
    assert float((z > 0.4).double().mean()) == pytest.approx(
        float(probability_above(at, 0.4)), abs=2e-5
    )
    assert float(z.mean()) == pytest.approx(float(mean(at)), abs=2e-5)
    assert float(z[z != 0].mean()) == pytest.approx(float(open_value(at)), abs=1e-3)
    assert 0 <= float(z.min()) <= float(z.max()) <= 1


def test_some_samples_are_exactly_zero_and_one() -> None:
    z = drawn(0.0)
    assert (z == 0).any()
    assert (z == 1).any()
    assert ((z > 0) & (z < 1)).any()


def test_the_chance_is_the_formula_and_rises() -> None:
    expected = 1 - torch.sigmoid(2 / 3 * math.log(0.1 / 1.1) - POINTS)
    torch.testing.assert_close(open_probability(POINTS), expected)
    assert (open_probability(POINTS).diff() > 0).all()
    assert float(open_probability(POINTS[-1])) == pytest.approx(0.998, abs=1e-3)
    assert float(open_probability(POINTS[0])) == pytest.approx(0.047, abs=1e-3)


def test_gradients_flow_through_open_gates_only() -> None:
    log_alpha = torch.zeros(3, requires_grad=True)
    u = torch.tensor([0.001, 0.5, 0.999])
    z = sample(log_alpha, u)
    assert (z.detach() == torch.tensor([0.0, 0.5, 1.0])).all()
    (gradient,) = torch.autograd.grad(z.sum(), log_alpha)
    assert gradient[1] > 0
    assert gradient[0] == gradient[2] == 0
    hard = binary_sample(log_alpha, u)
    assert hard.tolist() == [0, 1, 1]
    torch.testing.assert_close(torch.autograd.grad(hard.sum(), log_alpha)[0], gradient)


def test_the_expected_number_is_kept_highest_first() -> None:
    random = torch.Generator().manual_seed(0)
    for size in (1, 7, 40):
        log_alpha = torch.randn(size, generator=random) * 3
        kept = keep_expected(log_alpha)
        assert int(kept.sum()) == round(float(open_probability(log_alpha).sum()))
        if kept.any() and not kept.all():
            assert log_alpha[kept].min() >= log_alpha[~kept].max()


def gates(blocks: bool = True, hidden: bool = True) -> Gates:
    random = torch.Generator().manual_seed(1)

    def some(size: int) -> nn.Parameter:
        return nn.Parameter(torch.randn(size, generator=random))

    return Gates(
        (3, 2, 5, 4), 8, some(14), some(4) if blocks else None, some(8) if hidden else None
    )


def test_what_is_drawn_follows_the_generator_and_the_chances() -> None:
    found = gates()

    def draw(seed: int) -> torch.Tensor:
        units, hidden = found.draw(torch.Generator().manual_seed(seed))
        assert hidden is not None
        return torch.cat([*units, hidden]).detach()

    assert (draw(3) == draw(3)).all()
    assert not (draw(3) == draw(4)).all()
    share = torch.stack([draw(i) != 0 for i in range(4000)]).double().mean(0)
    c = found.probabilities()
    expected = torch.cat([torch.cat(c.units) * found.spread(c.blocks), c.hidden]).detach()
    assert float((share - expected).abs().max()) < 0.04
    assert set(draw(5)[-8:].tolist()) <= {0.0, 1.0}


def test_a_closed_block_closes_all_of_its_units() -> None:
    found = gates()
    assert found.blocks is not None
    found.blocks.data[1] = -100
    units, _ = found.draw(torch.Generator().manual_seed(0))
    assert not units[1].any()
    assert units[0].any()


def test_gates_that_are_not_learnt_are_open() -> None:
    found = gates(blocks=False, hidden=False)
    chances = found.probabilities()
    assert chances.blocks.tolist() == [1] * 4
    assert chances.hidden.tolist() == [1] * 8
    assert found.parameters == [found.units]
    assert found.draw(torch.Generator().manual_seed(0))[1] is None


def test_log_alpha_is_pulled_back_into_its_bounds() -> None:
    found = gates()
    found.units.data[:2] = torch.tensor([-50.0, 50.0])
    found.clamp()
    assert found.units[:2].tolist() == pytest.approx([LOW, HIGH])
