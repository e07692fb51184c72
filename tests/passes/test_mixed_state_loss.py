"""What layers that run on mixed rows are trained towards."""

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F

from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Layer
from prumux.passes.multiplexing.mixed_state_loss import (
    MixedStateLoss,
    mixed_error,
    mixed_target,
    multiplex,
)
from prumux.passes.training.teacher import ModelOutputs, observe
from tests.helpers.factory import multiplexed, random_batch, random_model

ALL = slice(None), slice(None)


def states(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def test_the_keyed_sum_of_the_members_has_no_error() -> None:
    aim, keys = states(4, 5, 8), states(2, 8)
    real = torch.ones(4, 5, dtype=torch.bool)
    mixed = torch.stack(
        [aim[2 * g] * keys[0] + aim[2 * g + 1] * keys[1] for g in range(2)]
    ) / (2**0.5)
    assert mixed_error(mixed, aim, keys, real) < 1e-12
    assert mixed_error(mixed.flip(0), aim, keys, real) > 0.5
    assert mixed_error(mixed, aim, keys.flip(0), real) > 0.5


def test_a_member_that_has_ended_is_left_out() -> None:
    aim, keys = states(2, 5, 8), states(2, 8)
    real = torch.tensor([[True] * 5, [True, True, False, False, False]])
    both = (aim[0] * keys[0] + aim[1] * keys[1]) / 2**0.5
    mixed = torch.where(real.all(0)[:, None], both, aim[0] * keys[0])[None]
    assert mixed_error(mixed, aim, keys, real) < 1e-12
    other = torch.where(real[..., None], aim, states(2, 5, 8) + 9)
    assert mixed_error(mixed, other, keys, real) < 1e-12, "padding has no say"


def test_after_the_norm_a_target_is_the_members_norms_mixed() -> None:
    """As long as the mean of what is mixed is 0, which signs see to in expectation."""
    y, keys = 3 * states(4, 5, 512) + 1, torch.ones(2, 512)
    y[::2] *= 7  # members of unlike deviation
    keys[1, 256:] = -1
    y = y - y.view(4, 5, 2, 256).mean(-1, keepdim=True).expand(-1, -1, -1, 256).flatten(2)
    real = torch.ones(4, 5, dtype=torch.bool)
    real[1, 3:] = False
    each = F.layer_norm(y, (512,))
    aim = multiplex(each, keys, real)
    for first in (False, True):
        found = F.layer_norm(mixed_target(y, keys, real, first), (512,))
        assert torch.nn.functional.cosine_similarity(found, aim, dim=-1).min() > 0.9999
    scale = mixed_target(y, keys, real, False).square().mean(-1).sqrt()
    both = y.view(2, 2, 5, 512).square().mean(-1).mean(1).sqrt()
    assert (scale / both)[:, :3].sub(1).abs().max() < 0.1, "as large as its members are"


def test_which_layers_are_compared() -> None:
    dense = random_model().encoder
    pairs = [
        MixedStateLoss.of(multiplexed(random_model(), at=at).encoder, dense, ALL, 1.0).pairs
        for at in range(4)
    ]
    assert pairs == [{0: 0, 1: 1, 2: 2}, {1: 1, 2: 2}, {2: 2}, {}]
    assert MixedStateLoss.of(dense, dense, ALL, 1.0).pairs == {}
    assert not MixedStateLoss.of(multiplexed(random_model()).encoder, dense, ALL, 0.0).pairs
    gone = multiplexed(random_model()).encoder
    gone = replace(gone, layers=(*gone.layers[:1], Layer(0, 0), *gone.layers[2:]))
    assert MixedStateLoss.of(gone, dense, ALL, 1.0).pairs == {0: 1, 2: 2}


def test_training_towards_it_descends() -> None:
    """One step against its gradient makes the error of the same batch smaller."""
    model, batch = multiplexed(random_model()), random_batch(random_model(), rows=6)
    teacher = EncoderModule(random_model())
    student = EncoderModule(model)
    for p in student.parameters():
        p.requires_grad = True
    between = MixedStateLoss.of(model.encoder, teacher.sizes, ALL, 1.0)
    real = torch.as_tensor(np.asarray(batch.attention_mask)).bool()
    with torch.no_grad():
        aim = observe(teacher, batch, "cpu", everywhere=True)

    def error() -> torch.Tensor:
        found: ModelOutputs = observe(student, batch, "cpu", everywhere=True)
        assert set(found.mixed) >= set(between.pairs)
        return between.error(student, found, aim, real)

    before = error()
    before.backward()  # type: ignore[no-untyped-call]
    assert student.get_parameter("mux.keys").grad is not None, "through the mixed rows"
    with torch.no_grad():
        for p in student.parameters():
            if p.grad is not None:
                p.copy_(p - 1e-3 * p.grad)
    assert error() < before
