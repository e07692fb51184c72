"""The prune passes: how much goes, what goes, and what they refuse."""

from dataclasses import replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch

from prumux.optimizer.base.errors import MissingError, PassError, SpecError
from prumux.optimizer.model.cost import count, unit_macs, unit_weights
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Branch, Encoder
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes.align import Align
from prumux.passes.prune import Prune
from prumux.passes.prune_ffn import PruneFfn
from prumux.passes.prune_heads import PruneHeads
from prumux.passes.prune_layers import PruneLayers
from prumux.passes.pruning.importance import fisher
from prumux.passes.slice import slice_model
from tests.helpers.factory import Family, Kind, make_context, random_batch, random_model
from tests.helpers.masking import logits, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)
LADDER = (0.05, 0.3, 0.5, 0.7, 0.9, 0.97)


def context(model: Model, **fields: Any) -> Any:
    return make_context(model, random_batch(model, rows=16), **fields)


def widths(masks: Masks) -> list[int]:
    return [int(m.sum()) for m in (*masks.heads, *masks.ffn)]


def macs(encoder: Encoder, length: int) -> int:
    return sum(
        x.heads * unit_macs(encoder, Branch(i, "attention"), length)
        + x.ffn * unit_macs(encoder, Branch(i, "ffn"), length)
        for i, x in enumerate(encoder.layers)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_sparsity_in_weights_is_reached_within_one_unit(family: Family) -> None:
    model = random_model(family)
    ctx, dense = context(model), count(model.encoder, 8).encoder_parameters
    for sparsity in LADDER:
        after = Prune(sparsity=sparsity).run(model, ctx)
        left = count(after.masks.sizes(model.encoder), 8).encoder_parameters
        limit = (1 - sparsity) * dense
        unit = max(
            unit_weights(model.encoder, Branch(0, "attention")),
            unit_weights(model.encoder, Branch(0, "ffn")),
        )
        assert limit - unit < left <= limit
        sliced = slice_model(after)
        assert count(sliced.encoder, 8).encoder_parameters == left


@pytest.mark.parametrize("early", [False, True])
def test_sparsity_in_multiply_adds_is_reached_within_one_unit(early: bool) -> None:
    model = random_model("bert", pool_early=early)
    ctx = context(model)
    length = ctx.length
    for sparsity in LADDER:
        after = Prune(sparsity=sparsity, of="macs").run(model, ctx)
        left = macs(after.masks.sizes(model.encoder), length)
        limit = (1 - sparsity) * macs(model.encoder, length)
        assert limit - unit_macs(model.encoder, Branch(0, "attention"), length) < left <= limit


@pytest.mark.parametrize("of", ["weights", "macs"])
def test_more_sparsity_keeps_less_everywhere(of: Any) -> None:
    model = random_model("bert")
    ctx = context(model)
    kept = [Prune(sparsity=x / 10, of=of).run(model, ctx).masks for x in range(1, 10)]
    sizes = [count(m.sizes(model.encoder), 8).encoder_parameters for m in kept]
    assert sizes == sorted(sizes, reverse=True)
    for more, less in pairwise(kept):
        # The last unit bought with what was left may be one that a larger limit passes over.
        pairs = zip(widths(more), widths(less), strict=True)
        assert all(b <= a + 1 for a, b in pairs)


def test_the_most_important_units_of_a_branch_stay() -> None:
    model = random_model("bert")
    ctx = context(model)
    scores, masks = fisher(model, ctx), Prune(sparsity=0.6).run(model, ctx).masks
    pairs = zip((*scores.heads, *scores.ffn), (*masks.heads, *masks.ffn), strict=True)
    for score, mask in pairs:
        if bool(mask.any()) and not bool(mask.all()):
            assert score[mask].min() >= score[~mask].max()


def test_masks_that_are_pending_stay_pruned() -> None:
    model = random_model("bert")
    ctx = context(model)
    first = PruneHeads(ratio=0.3).run(model, ctx)
    second = Prune(sparsity=0.5).run(first, ctx)
    assert not any(
        bool((b & ~a).any())
        for a, b in zip(first.masks.heads, second.masks.heads, strict=True)
    )
    assert count(second.masks.sizes(model.encoder), 8).encoder_parameters <= 0.5 * (
        count(model.encoder, 8).encoder_parameters
    )


def test_sparsity_counts_from_the_dense_model() -> None:
    """A second prune after slice goes on from where the first stopped."""
    model = random_model("bert")
    ctx = context(model)
    twice = Pipeline.parse("prune{sparsity=0.3},slice,prune{sparsity=0.6},slice")
    left = count(twice.run(model, ctx).encoder, 8).encoder_parameters
    dense = count(model.encoder, 8).encoder_parameters
    assert (
        0.4 * dense - unit_weights(model.encoder, Branch(0, "attention")) < left <= 0.4 * dense
    )


def test_nothing_to_do_is_the_same_object() -> None:
    model = random_model("bert")
    ctx = context(model)
    passes = (Prune(sparsity=0), Prune(speedup=1), PruneHeads(ratio=0), PruneFfn(ratio=0))
    for pass_ in (*passes, PruneLayers(), Align(multiple=16)):
        assert pass_.run(model, ctx) is model


def test_the_same_call_gives_the_same_masks() -> None:
    model = random_model("bert", task="token-classification")
    one, two = (Prune(sparsity=0.6).run(model, context(model)).masks for _ in range(2))
    pairs = zip((*one.heads, *one.ffn), (*two.heads, *two.ffn), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_ladder_that_a_tuner_tries() -> None:
    ladder = list(Prune.choices(random_model("bert")))
    assert [x.sparsity for x in ladder] == [x / 40 for x in range(4, 37)]
    assert {x.of for x in ladder} == {"macs"}
    assert Pipeline.parse(str(ladder[3])).passes == (ladder[3],)


@pytest.mark.parametrize("kind", ["heads", "ffn"])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 1.0])
def test_a_ratio_of_heads_or_units_goes(kind: str, ratio: float) -> None:
    model = random_model("bert")
    ctx = context(model)
    cls: Any = PruneHeads if kind == "heads" else PruneFfn
    full = list(getattr(Masks.full(model.encoder), kind))
    overall = getattr(cls(ratio=ratio).run(model, ctx).masks, kind)
    layer = getattr(cls(ratio=ratio, scope="layer").run(model, ctx).masks, kind)
    total = sum(map(len, full))
    assert sum(int(m.sum()) for m in overall) == round((1 - ratio) * total)
    assert [int(m.sum()) for m in layer] == [round((1 - ratio) * len(m)) for m in full]
    scores = torch.cat(getattr(fisher(model, ctx), kind))
    kept = torch.cat(overall)
    if 0 < int(kept.sum()) < total:
        assert scores[kept].min() >= scores[~kept].max()
    other = "ffn" if kind == "heads" else "heads"
    assert all(bool(m.all()) for m in getattr(cls(ratio=ratio).run(model, ctx).masks, other))


def harmless(model: Model, layer: int, kind: str) -> Model:
    """The model with one block that changes (nearly) nothing."""
    weights = dict(model.weights)
    out = f"layers.{layer}.{'attention.output' if kind == 'attention' else 'ffn.down'}"
    before = f"layers.{layer}.attention" if kind == "ffn" else f"layers.{layer - 1}.ffn"
    noise = 1e-4 * torch.randn(weights[f"{out}.weight"].shape)
    weights |= {f"{out}.weight": noise, f"{out}.bias": torch.zeros(48)}
    for norm in (f"{before}.norm", f"layers.{layer}.{kind}.norm"):
        weights |= {f"{norm}.weight": torch.ones(48), f"{norm}.bias": torch.zeros(48)}
    return replace(model, weights=weights)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize(("layer", "kind"), [(2, "attention"), (1, "ffn"), (3, "ffn")])
def test_the_block_that_does_least_goes_first(task: Kind, layer: int, kind: str) -> None:
    model = harmless(random_model("bert", task=task), layer, kind)
    ctx = context(model)
    after = PruneLayers(**{kind: 1}).run(model, ctx)
    assert after.notes["removed"] == [f"layers.{layer}.{kind}"]
    masks = after.masks.heads if kind == "attention" else after.masks.ffn
    assert [bool(m.any()) for m in masks] == [i != layer for i in range(4)]
    batch = random_batch(model)
    assert worst(logits(after, batch), logits(model, batch)) < 1e-2
    assert worst(logits(slice_model(after), batch), logits(after, batch)) < 1e-5


def test_as_many_blocks_go_as_are_asked_for() -> None:
    model = random_model("bert")
    ctx = context(model)
    after = Pipeline.parse("prune-layers{attention=2 ffn=3},slice").run(model, ctx)
    assert sorted(x.heads for x in after.encoder.layers) == [0, 0, 12, 12]
    assert sorted(x.ffn for x in after.encoder.layers) == [0, 0, 0, 64]
    with pytest.raises(PassError, match="attention=3 blocks to remove, the model has 2") as e:
        Pipeline.parse("prune-layers{attention=3}").run(after, ctx)
    assert "use prune-layers{attention=2} or less" in str(e.value)
    assert e.value.exit_code == 2


@pytest.mark.parametrize("multiple", [8, 16, 20])
def test_align_rounds_widths(multiple: int) -> None:
    model = random_model("bert")
    ctx = context(model)
    pruned = Prune(sparsity=0.6).run(model, ctx)
    after = Align(multiple=multiple).run(pruned, ctx)
    assert widths(after.masks)[:4] == widths(pruned.masks)[:4]
    pairs = list(zip(pruned.masks.ffn, after.masks.ffn, strict=True))
    for before, now in pairs:
        a, b = int(before.sum()), int(now.sum())
        assert b % multiple == 0 or b == 64
        assert (a == 0) == (b == 0)
        assert abs(a - b) <= multiple / 2 or b in (multiple, 64)
        assert bool((before <= now).all()) or bool((now <= before).all())
    assert after.notes["ffn"] == [int(now.sum()) for _, now in pairs]
    assert Align(multiple=multiple).run(after, ctx) is after
    assert Align(multiple=1).run(pruned, ctx) is pruned


def test_align_keeps_the_best_units() -> None:
    model = random_model("bert")
    ctx = context(model)
    pruned = PruneFfn(ratio=0.45, scope="layer").run(model, ctx)
    assert widths(pruned.masks)[4:] == [35] * 4
    scores = fisher(model, ctx).ffn
    for multiple, width in ((16, 32), (20, 40)):
        for score, mask in zip(
            scores, Align(multiple=multiple).run(pruned, ctx).masks.ffn, strict=True
        ):
            assert set(mask.nonzero()[:, 0].tolist()) == set(
                score.topk(width).indices.tolist()
            )


def test_align_after_slice_is_too_late() -> None:
    model = random_model("bert")
    pipeline = Pipeline.parse("prune-ffn{ratio=0.45 scope=layer},slice,align")
    with pytest.raises(PassError, match="put 'align' before 'slice'") as caught:
        pipeline.run(model, context(model))
    assert caught.value.exit_code == 2
    Pipeline.parse("slice,align").run(model, context(model))


WRONG = {
    "prune": "give one of sparsity=0.6 and speedup=2",
    "prune{sparsity=0.5 speedup=2}": "give one of sparsity=0.6 and speedup=2",
    "prune{sparsity=1}": "sparsity must be in [0, 1), not 1.0",
    "prune{sparsity=-0.1}": "sparsity must be in [0, 1), not -0.1",
    "prune{speedup=0.5}": "speedup must be 1 or more, not 0.5",
    "prune{sparsity=0.5 of=time}": "wants weights or macs, not time",
    "prune-heads": "prune-heads needs option 'ratio'; write prune-heads{ratio=...}",
    "prune-heads{ratio=1.5}": "ratio must be in [0, 1], not 1.5",
    "prune-ffn{ratio=-1}": "ratio must be in [0, 1], not -1.0",
    "prune-ffn{ratio=0.5 scope=all}": "wants global or layer, not all",
    "prune-layers{attention=-1}": "attention must be 0 or more, not -1",
    "prune-layers{ffn=-2}": "ffn must be 0 or more, not -2",
    "align{multiple=0}": "multiple must be 1 or more, not 0",
    "reconstruct{rows=0}": "rows must be 1 or more, not 0",
    "reconstruct{ridge=0}": "ridge must be above 0, not 0",
}


@pytest.mark.parametrize("text", WRONG)
def test_wrong_options_are_shown_where_they_stand(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(f"slice,{text}")
    assert WRONG[text] in str(caught.value)
    lines = str(caught.value).splitlines()
    assert len(lines) <= 5
    assert any(set(line.strip()) == {"^"} for line in lines)


def test_a_speed_up_needs_a_target() -> None:
    model = random_model("bert")
    with pytest.raises(
        MissingError, match="a measured speed-up needs a target; use sparsity="
    ):
        Prune(speedup=2).run(model, context(model))


def test_a_model_with_nothing_left_stays_as_it_is() -> None:
    model = random_model("bert", heads=(0, 0), ffn=(0, 0))
    assert Prune(sparsity=0.9).run(model, context(model)) is model
