"""Every pass that says `preserves` does: logits before and after agree on random inputs."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.pipeline.registry import all_passes
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import logits, masked, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)
NAMES = sorted(cls.name for cls in all_passes() if cls.preserves)


def test_there_are_such_passes() -> None:
    assert {"pool-early", "slice"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    family=st.sampled_from(FAMILIES), task=st.sampled_from(KINDS), seed=st.integers(0, 9999)
)
def test_logits_stay(name: str, family: Family, task: Kind, seed: int) -> None:
    model = random_model(family, (3, 2, 3), (6, 0, 5), hidden=12, task=task, seed=seed)
    model = masked(model, seed) if seed % 3 else model
    batch = random_batch(model, rows=4, length=9, seed=seed)
    after = Pipeline.parse(name).run(model, make_context(model, batch))
    other = random_batch(model, rows=4, length=14, seed=seed + 1)
    for rows in (batch, other):
        assert worst(logits(after, rows), logits(model, rows)) < 1e-5


@pytest.mark.parametrize("name", NAMES)
def test_once_is_enough(name: str) -> None:
    model = masked(random_model(heads=(3, 2), ffn=(6, 5), hidden=12), seed=1)
    ctx = make_context(model)
    (pass_,) = Pipeline.parse(name).passes
    once = pass_.run(model, ctx)
    assert pass_.run(once, ctx) is once
