"""Hidden dimensions go, the same ones everywhere: marked, refitted, cut, exported."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch

from prumux.export.graph.graph import build
from prumux.export.runtime.ort import OrtEngine
from prumux.optimizer.base.errors import PassError, SpecError
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes.prune_hidden import PruneHidden
from prumux.passes.pruning.importance import hidden_fisher
from prumux.passes.reconstruct import Reconstruct
from prumux.passes.slice import slice_model
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import logits, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)
BEFORE = {
    "alone": "",
    "pool-early": "pool-early,",
    "prune": "prune{sparsity=0.4},",
    "prune-layers": "prune-layers{attention=1 ffn=1},",
    "all": "pool-early,prune{sparsity=0.3},prune-layers{ffn=1},",
}


def context(model: Model, rows: int = 12) -> Context:
    return make_context(model, random_batch(model, rows=rows, length=10))


def distance(model: Model, ctx: Context) -> float:
    (batch,) = ctx.workload
    return float((logits(model, batch) - logits(ctx.dense, batch)).square().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_most_important_dimensions_stay(family: Family) -> None:
    model = random_model(family, heads=(6, 4), ffn=(20, 16))
    ctx = context(model)
    scores = hidden_fisher(model, ctx)
    for keep in (37, 24, 1):
        marked = PruneHidden(keep=keep).run(model, ctx)
        mask = marked.masks.hidden
        assert int(mask.sum()) == keep
        assert float(scores[mask].min()) > float(scores[~mask].max())
        assert marked.notes == {"hidden": keep}
        assert marked.masks.heads is model.masks.heads
        assert marked.masks.ffn is model.masks.ffn
        assert marked.weights is model.weights
        assert marked.stage == "masked"


def test_a_dimension_that_does_nothing_goes_first() -> None:
    """It is zero everywhere and unread in the head: only LayerNorm counts it."""
    model = random_model(heads=(6,), ffn=(20,))
    weights = {name: x.clone() for name, x in model.weights.items()}
    weights["head.output.weight"][:, 7] = 0
    for name, x in weights.items():
        if any(part in name for part in ("norm.", "attention.output.", "down.")):
            x[7] = 0
    ctx = context(replace(model, weights=weights))
    marked = PruneHidden(keep=47).run(ctx.dense, ctx)
    assert marked.masks.hidden.logical_not().nonzero().tolist() == [[7]]
    assert PruneHidden(keep=47).run(model, context(model)).masks.hidden[7]


@pytest.mark.parametrize(("ratio", "left"), [(0.25, 36), (0.5, 24), (0.99, 1)])
def test_a_ratio_of_the_dimensions_goes(ratio: float, left: int) -> None:
    model = random_model(heads=(6,), ffn=(20,))
    marked = PruneHidden(ratio=ratio).run(model, context(model))
    assert int(marked.masks.hidden.sum()) == left


def test_dimensions_that_are_pending_stay_pruned() -> None:
    model = random_model(heads=(6,), ffn=(20,))
    ctx = context(model)
    first = PruneHidden(keep=40).run(model, ctx)
    second = PruneHidden(ratio=0.5).run(first, ctx)
    assert int(second.masks.hidden.sum()) == 24
    assert not bool((second.masks.hidden & ~first.masks.hidden).any())
    assert PruneHidden(keep=40).run(first, ctx) is first
    assert PruneHidden(keep=44).run(first, ctx) is first


def test_nothing_to_do_is_the_same_object() -> None:
    model = random_model(heads=(6,), ffn=(20,))
    for pass_ in (PruneHidden(keep=48), PruneHidden(ratio=0)):
        assert pass_.run(model, context(model)) is model


@pytest.mark.parametrize(
    ("hidden", "sizes"),
    [
        (384, [352, 320, 288, 256, 224, 192]),
        (768, [704, 640, 576, 512, 448, 384]),
        (48, [40, 32, 24]),
        (8, []),
    ],
)
def test_the_ladder_that_a_tuner_tries(hidden: int, sizes: list[int]) -> None:
    model = random_model(heads=(2,), ffn=(4,), hidden=hidden)
    assert [x.keep for x in PruneHidden.choices(model)] == sizes


WRONG = {
    "prune-hidden": "give one of keep=256 and ratio=0.25",
    "prune-hidden{keep=9 ratio=0.5}": "give one of keep=256 and ratio=0.25",
    "prune-hidden{keep=0}": "keep must be 1 or more, not 0",
    "prune-hidden{ratio=1}": "ratio must be in [0, 1), not 1.0",
    "prune-hidden{ratio=-0.1}": "ratio must be in [0, 1), not -0.1",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_options_are_shown(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(text)
    assert WRONG[text] in str(caught.value)


def test_more_than_there_are_is_refused() -> None:
    model = random_model(heads=(6,), ffn=(20,))
    with pytest.raises(PassError, match="the model has 48; use") as caught:
        Pipeline.parse("prune-hidden{keep=49}").run(model, context(model))
    assert "keep=49 hidden dimensions" in str(caught.value)
    assert "prune-hidden{keep=48} or less" in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("before", BEFORE)
def test_masked_equals_sliced(before: str, family: Family, task: Kind) -> None:
    if "pool-early" in BEFORE[before] and task == "token-classification":
        before = "prune"
    model = random_model(family, heads=(6, 4, 3), ffn=(20, 16, 12), task=task)
    ctx = context(model)
    for text in (f"{BEFORE[before]}prune-hidden{{keep=37}}", "prune-hidden{keep=37}"):
        after = BEFORE[before].rstrip(",") if text.startswith("prune-hidden") else ""
        marked = Pipeline.parse(",".join(filter(None, (text, after)))).run(model, ctx)
        sliced = slice_model(marked)
        assert sliced.encoder.hidden == 37
        assert sliced.encoder.embedding == (24 if family == "electra" else 37)
        assert sliced.encoder.pool_early == ("pool-early" in BEFORE[before])
        assert worst(logits(sliced, ctx.workload[0]), logits(marked, ctx.workload[0])) < 1e-5


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("before", ["", "prune{sparsity=0.4},"])
def test_a_refit_before_the_cut_comes_nearer(before: str, family: Family, task: Kind) -> None:
    model = random_model(family, task=task)
    ctx = context(model, rows=64)
    for keep in (44, 36):
        text = f"{before}prune-hidden{{keep={keep}}}"
        cut = Pipeline.parse(f"{text},slice").run(model, ctx)
        masked = Pipeline.parse(f"{text},reconstruct").run(model, ctx)
        refitted = Pipeline.parse("slice").run(masked, ctx)
        assert refitted.encoder == cut.encoder
        assert worst(logits(refitted, ctx.workload[0]), logits(masked, ctx.workload[0])) < 1e-5
        assert distance(refitted, ctx) < 0.5 * distance(cut, ctx)
        left = masked.history[-1].notes["error_left"]
        assert all(0 <= x <= 1 for x in left.values())


@pytest.mark.parametrize("early", [False, True])
def test_what_a_mask_takes_away_plays_no_part_in_a_refit(early: bool) -> None:
    """Other numbers in weights that are masked leave all that survives as it is."""
    text = "pool-early," * early + "prune{sparsity=0.4},prune-hidden{keep=37}"
    model = random_model("electra", heads=(6, 4), ffn=(20, 16))
    ctx = context(model, rows=64)
    marked = Pipeline.parse(text).run(model, ctx)
    dead = ~marked.masks.hidden
    weights = {name: x.clone() for name, x in marked.weights.items()}
    weights["head.dense.bias"][dead] += 3
    weights["layers.0.ffn.up.weight"][:, dead] -= 2
    weights["layers.1.attention.output.weight"][dead] += 1
    weights["layers.1.attention.norm.weight"][dead] -= 5
    other = replace(marked, weights=weights)
    one, two = (slice_model(Reconstruct().run(m, ctx)).weights for m in (marked, other))
    assert all(worst(one[name], two[name]) < 1e-5 for name in one)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_an_odd_hidden_size_is_exported(family: Family, task: Kind) -> None:
    model = random_model(family, heads=(6, 4), ffn=(20, 16), task=task)
    text = "prune{sparsity=0.3},prune-hidden{keep=37},reconstruct,slice"
    small = Pipeline.parse(text).run(model, context(model))
    assert small.encoder.hidden == 37
    session = OrtEngine(build(small).SerializeToString(), threads=1)
    inputs = random_batch(small, rows=6, length=9).inputs()
    expected = run(EncoderModule(small), inputs)
    np.testing.assert_allclose(session.run(inputs), expected, atol=1e-4)
    assert float(torch.as_tensor(expected).std()) > 0.05
