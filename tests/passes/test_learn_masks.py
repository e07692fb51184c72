"""learn-masks: costs, the choice of gates, training, and what it leaves behind."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.errors import MissingError, PassError, SpecError
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model.cost import count, unit_weights
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule
from prumux.optimizer.model.sizes import Branch, Encoder
from prumux.optimizer.model.torch_ops import Factors
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.tasks.regression import Regression
from prumux.passes import learn_masks
from prumux.passes.gates.expected_cost import CountedBudget
from prumux.passes.gates.gates import OpenProbabilities
from prumux.passes.gates.hard_concrete import LOW
from prumux.passes.gates.mask_learner import PENALTY, MaskLearner
from prumux.passes.learn_masks import LearnMasks
from prumux.passes.pruning.importance import fisher
from prumux.passes.slice import slice_model
from prumux.passes.training.data_parallel import DataParallel
from prumux.passes.training.layer_matching import matched_error, ordered_match
from prumux.passes.training.teacher import ModelOutputs, observe
from tests.helpers.factory import Family, make_context, random_batch
from tests.helpers.gating import small, some_gates, table
from tests.helpers.masking import logits, random_masks, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
QUICK: dict[str, Any] = {"epochs": 3, "batch": 8}


def loud() -> Model:
    """A regression model with large outputs: no softmax hides what training wins."""
    model = small(labels=1)
    output = {"head.output.weight": 5 * model.weights["head.output.weight"]}
    weights = {**model.weights, **output}
    return replace(model, weights=weights, task=Regression(model.task.labels))


def context(model: Model, **fields: Any) -> Context:
    return make_context(model, random_batch(model, rows=16), **fields)


def test_everything_may_go() -> None:
    model = small(pool_early=True)
    found = LearnMasks(sparsity=0.999, **QUICK).run(model, context(model))
    assert not any(bool(m.any()) for m in (*found.masks.heads, *found.masks.ffn))
    assert torch.isfinite(logits(slice_model(found), random_batch(model))).all()


@dataclass
class Line:
    """A budget whose expected cost is given."""

    mean: float
    limit: float = 0.5
    dense: float = 1.0

    def expected(self, p: OpenProbabilities) -> Tensor:
        return self.mean + 0 * p.units[0].sum() + p.units[0].mean() * 1e-6

    def cost(self, sizes: Encoder) -> float:
        return self.mean


@pytest.mark.parametrize(("cost", "sign"), [(0.9, 1), (0.1, -1)])
def test_the_multipliers_push_towards_the_target(cost: float, sign: int) -> None:
    model = small()
    options = LearnMasks(sparsity=0.5, warmup=0, **QUICK)
    ctx = context(model)
    learner = MaskLearner(
        model,
        options,
        options.gating,
        Line(cost),
        rows=ctx.fit,
        scores=fisher(model, ctx),
        ctx=ctx,
    )
    optimizer = torch.optim.AdamW(learner.groups(), fused=True)
    for _ in range(3):
        optimizer.zero_grad()
        learner.excess(1.0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    # Sparsity below the target makes l1 negative, so that descent raises sparsity.
    assert sign * learner.multipliers[0].item() < 0
    assert learner.multipliers[1].item() > PENALTY
    units = learner.gates.units.grad
    assert units is not None
    assert (sign * units[: model.encoder.layers[0].heads] > 0).all()


def test_states_are_compared_where_the_dimensions_were() -> None:
    model = small()
    ctx, half = context(model), model.encoder.hidden // 2
    narrow = Pipeline.parse(f"prune-hidden{{keep={half}}},slice").run(model, ctx)
    assert narrow.kept_hidden is not None
    options, scores = LearnMasks(sparsity=0.5, **QUICK), fisher(narrow, ctx)
    batch = next(iter(batches(ctx.fit, 8)))
    losses = []
    for left in (narrow.kept_hidden, narrow.kept_hidden.roll(1)):
        one = replace(narrow, kept_hidden=left)
        learner = MaskLearner(
            one, options, options.gating, Line(0.5), rows=ctx.fit, scores=scores, ctx=ctx
        )
        losses.append(float(learner.loss(batch, 1.0).detach()))
    assert losses[0] < 0.9 * losses[1]


def test_the_target_rises_from_what_the_model_costs_at_the_start() -> None:
    model = small()
    ctx = context(model)
    options = LearnMasks(sparsity=0.6, warmup=0.5, **QUICK)
    budget = CountedBudget(model.encoder, model.encoder, 0.4, "weights", 8)
    learner = MaskLearner(
        model,
        options,
        options.gating,
        budget,
        rows=ctx.fit,
        scores=fisher(model, ctx),
        ctx=ctx,
    )
    assert 0.96 * budget.dense < learner.start_cost < budget.dense
    learner.multipliers.data.copy_(torch.tensor([1.0, 0.0]))
    assert learner.excess(0.0).item() == pytest.approx(0, abs=1e-6)
    halfway, end = learner.excess(0.25).item(), learner.excess(0.5).item()
    assert end == pytest.approx(
        budget.limit / budget.dense - learner.start_cost / budget.dense
    )
    assert halfway == pytest.approx(end / 2)
    assert learner.excess(1.0).item() == end


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hidden_masks", [False, True])
def test_masked_is_sliced_and_the_target_is_met(family: Family, hidden_masks: bool) -> None:
    model = small(family)
    ctx = context(model)
    whole = count(model.encoder, 8).encoder_parameters
    unit = unit_weights(model.encoder, Branch(0, "attention")) + 3 * model.encoder.hidden
    for sparsity in (0.3, 0.75):
        chosen = LearnMasks(sparsity=sparsity, hidden_masks=hidden_masks, **QUICK)
        after = chosen.run(model, ctx)
        after.verify()
        sliced = slice_model(after)
        left = count(sliced.encoder, 8).encoder_parameters
        limit = (1 - sparsity) * whole
        assert max(limit - unit, 0) <= left <= limit
        assert after.notes["sparsity"] == pytest.approx(1 - left / whole)
        batch = random_batch(model, seed=3)
        assert worst(logits(after, batch), logits(sliced, batch)) < 1e-5


def test_hidden_masks_can_close_and_stay_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    ctx = context(model)
    falling = iter(range(100, 0, -1))  # so that the last state is the best
    monkeypatch.setattr(MaskLearner, "validation_loss", lambda self: float(next(falling)))
    options = LearnMasks(sparsity=0.7, hidden_masks=True, mask_lr=0.5, epochs=20, batch=8)
    after = options.run(model, ctx)
    assert 1 <= int(after.masks.hidden.sum()) < model.encoder.hidden
    batch = random_batch(model, seed=3)
    assert worst(logits(after, batch), logits(slice_model(after), batch)) < 1e-5


@pytest.mark.parametrize("hidden_masks", [False, True])
def test_the_result_is_the_trained_function_with_its_factors(hidden_masks: bool) -> None:
    model = small()
    ctx = context(model)
    options = LearnMasks(sparsity=0.5, hidden_masks=hidden_masks, **QUICK)
    budget = CountedBudget(model.encoder, model.encoder, 0.5, "weights", 8)
    learner = MaskLearner(
        model,
        options,
        options.gating,
        budget,
        rows=ctx.fit,
        scores=fisher(model, ctx),
        ctx=ctx,
    )
    learner.gates.units.data.copy_(some_gates(model.encoder, 2).units)
    if learner.gates.hidden is not None:
        learner.gates.hidden.data[::3] = LOW
    found = learner.result()
    z = [v for m in learner.module.factors.heads for v in m.tolist()]
    assert any(0 < x < 0.9 for x in z)
    assert found.masks.hidden.all() != hidden_masks
    batch = random_batch(model, seed=4)
    with torch.no_grad():
        aim = observe(learner.module, batch, "cpu").logits
    assert worst(aim, logits(found, batch)) < 1e-5
    assert worst(aim, logits(slice_model(found), batch)) < 1e-5


def test_a_closed_block_is_skipped_as_in_the_sliced_model() -> None:
    model = small()
    ctx = context(model)
    options = LearnMasks(sparsity=0.5, **QUICK)
    budget = CountedBudget(model.encoder, model.encoder, 0.5, "weights", 8)
    learner = MaskLearner(
        model,
        options,
        options.gating,
        budget,
        rows=ctx.fit,
        scores=fisher(model, ctx),
        ctx=ctx,
    )
    full = Masks.full(model.encoder)
    gone = replace(
        full, heads=(full.heads[0], torch.zeros(4, dtype=torch.bool), full.heads[2])
    )
    learner.apply(tuple(m.float() for m in (*gone.heads, *gone.ffn)), None)
    attends = [b.index for b in learner.module.alive if b.kind == "attention"]
    assert attends == [0, 2]
    batch = random_batch(model)
    with torch.no_grad():
        found = observe(learner.module, batch, "cpu").logits
    sliced = slice_model(replace(model, masks=gone))
    assert worst(found, logits(sliced, batch)) < 1e-5
    zeroed = Factors(tuple(m.float() for m in gone.heads), (), None)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    assert worst(EncoderModule(model)(**inputs, factors=zeroed), found) > 1e-3


def same(a: Model, b: Model) -> bool:
    masks = zip(
        (*a.masks.heads, *a.masks.ffn, a.masks.hidden),
        (*b.masks.heads, *b.masks.ffn, b.masks.hidden),
        strict=True,
    )
    return all(torch.equal(x, y) for x, y in masks) and all(
        torch.equal(a.weights[k], b.weights[k]) for k in a.weights
    )


def test_the_same_seed_gives_the_same_model() -> None:
    model = loud()
    options = LearnMasks(sparsity=0.5, mask_lr=0.3, **QUICK)
    first, again = (options.run(model, context(model)) for _ in range(2))
    assert same(first, again)
    assert not same(first, options.run(model, context(model, seed=1)))


def test_a_killed_run_goes_on_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loud()
    options = LearnMasks(sparsity=0.6, mask_lr=0.3, epochs=4, batch=8)  # 16 steps, 8 checks
    whole = options.run(model, context(model))
    plain, steps = MaskLearner.loss, []

    def killed(self: MaskLearner, batch: Any, share: float, parallel: DataParallel) -> Tensor:
        steps.append(share)
        if len(steps) == 10:
            raise KeyboardInterrupt
        return plain(self, batch, share, parallel)

    monkeypatch.setattr(MaskLearner, "loss", killed)
    ctx = context(model, store=Store(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        options.run(model, ctx)
    assert list(tmp_path.glob("learn-masks-*.checkpoint"))
    resumed = options.run(model, ctx)
    assert 0 < steps[10] < 1
    assert len(steps) < 26
    assert same(whole, resumed)
    ctx.store.drop()
    assert not list(tmp_path.glob("learn-masks-*.checkpoint"))


def test_no_tensor_of_the_given_model_changes() -> None:
    model = small()
    before = {k: v.clone() for k, v in model.weights.items()}
    LearnMasks(sparsity=0.5, **QUICK).run(model, context(model))
    assert all(torch.equal(before[k], v) for k, v in model.weights.items())


@pytest.mark.parametrize("problem", ["regression", "tokens"])
def test_other_tasks(problem: str) -> None:
    if problem == "tokens":
        model = small(task="token-classification", labels=3)
    else:
        model = small(labels=1)
        model = replace(model, task=Regression(model.task.labels))
    ctx = context(model)
    assert ctx.fit.labels is None
    after = LearnMasks(sparsity=0.5, **QUICK).run(model, ctx)
    batch = random_batch(model, seed=3)
    assert worst(logits(after, batch), logits(slice_model(after), batch)) < 1e-5
    assert not all(torch.equal(after.weights[k], v) for k, v in model.weights.items())


def test_training_brings_the_decided_model_nearer_to_the_dense_one() -> None:
    model = loud()
    ctx = context(model)
    # Gentle steps: at higher rates the last bits, so the processor, decide the ratio.
    after = LearnMasks(sparsity=0.5, epochs=40, batch=8, lr=3e-3).run(model, ctx)
    harm = after.notes["validation_loss"]
    assert min(harm[1:]) < 0.9 * harm[0]


def test_a_model_that_is_small_enough_already_stays_as_it_is() -> None:
    model = small()
    small_one = slice_model(LearnMasks(sparsity=0.5, **QUICK).run(model, context(model)))
    ctx = context(model)
    assert LearnMasks(sparsity=0.3, **QUICK).run(small_one, ctx) is small_one
    assert LearnMasks(sparsity=0).run(model, ctx) is model
    assert LearnMasks(speedup=1).run(model, ctx) is model
    again = LearnMasks(sparsity=0.8, **QUICK).run(small_one, ctx)  # blocks may be gone
    unit = unit_weights(model.encoder, Branch(0, "attention")) + 3 * model.encoder.hidden
    left = count(again.masks.sizes(again.encoder), 8).encoder_parameters
    limit = 0.2 * count(model.encoder, 8).encoder_parameters
    assert limit - unit < left <= limit


def test_a_speedup_is_met_in_the_tables_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn_masks, "cost_table", lambda model, ctx: table())
    model = small(pool_early=True)
    after = LearnMasks(speedup=4, **QUICK).run(model, context(model))
    spent = table().predict_ms(after.masks.sizes(model.encoder))
    assert 10 - 1.5 < spent <= 10
    with pytest.raises(
        PassError, match=r"ask for learn-masks\{speedup=20\} or less"
    ) as caught:
        LearnMasks(speedup=30, **QUICK).run(model, context(model))
    assert "1.33 of 40 ms" in str(caught.value)


def test_a_speedup_needs_a_target() -> None:
    model = small()
    with pytest.raises(MissingError, match="use sparsity= in place of it"):
        LearnMasks(speedup=2).run(model, context(model))


def test_pending_masks_are_refused() -> None:
    model = small()
    masked = replace(model, masks=random_masks(model.encoder, 0))
    with pytest.raises(PassError, match=r"put slice before it: slice,learn-masks"):
        LearnMasks(sparsity=0.5).requires(masked)
    LearnMasks(sparsity=0.5).requires(model)


def test_matching_keeps_the_order_and_has_the_least_error() -> None:
    random = np.random.default_rng(0)
    for rows, columns in ((1, 1), (4, 6), (4, 2), (3, 3), (4, 1)):
        errors = torch.tensor(random.random((rows, columns)))
        found = ordered_match(errors)
        ways = [
            way
            for way in np.ndindex(*(columns,) * rows)
            if all(a <= b for a, b in pairwise(way))
        ]
        least = min(sum(float(errors[i, j]) for i, j in enumerate(way)) for way in ways)
        assert sum(float(errors[i, j]) for i, j in enumerate(found)) == pytest.approx(least)
        assert found == sorted(found)


def test_matching_without_a_living_layer_costs_nothing() -> None:
    model = small()
    batch = random_batch(model)
    found = observe(EncoderModule(model), batch, "cpu")
    seen = ModelOutputs(found.logits, {i: found.states[i] for i in range(3)})
    real = torch.as_tensor(batch.attention_mask).bool()
    assert float(matched_error(seen, seen, [], real)) == 0
    assert float(matched_error(seen, seen, [0, 1, 2], real)) == pytest.approx(0)
    assert float(matched_error(seen, seen, [0], real)) > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of sparsity=0.8 and speedup=4"),
        ({"sparsity": 0.5, "speedup": 2}, "give one of"),
        ({"sparsity": 1.0}, r"sparsity must be in \[0, 1\), not 1.0"),
        ({"speedup": 0.5}, "speedup must be 1 or more, not 0.5"),
        ({"speedup": 2, "hidden_masks": True}, "hidden_masks needs sparsity"),
        ({"sparsity": 0.5, "epochs": 1, "minutes": 1}, "exclude each other"),
        ({"sparsity": 0.5, "mask_lr": 0}, "mask_lr must be above 0, not 0"),
        ({"sparsity": 0.5, "hidden": -1.0}, "hidden must be 0 or more, not -1.0"),
        ({"sparsity": 0.5, "hidden": 0.0, "logits": 0.0}, "nothing would be learnt"),
        ({"sparsity": 0.5, "warmup": 2.0}, r"warmup must be in \[0, 1\], not 2.0"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearnMasks(**options)


def test_text_form() -> None:
    text = "learn-masks{sparsity=0.8 of=macs epochs=2 hidden_masks}"
    pipeline = Pipeline.parse(text)
    assert pipeline.passes == (
        LearnMasks(sparsity=0.8, of="macs", epochs=2, hidden_masks=True),
    )
    assert Pipeline.parse(str(pipeline)) == pipeline
    with pytest.raises(SpecError, match="give one of sparsity"):
        Pipeline.parse("learn-masks{epochs=2}")


def test_sizing_a_candidate_trains_nothing() -> None:
    text = "prune{sparsity=0.3},slice,learn-masks{sparsity=0.6 of=macs epochs=9},slice"
    *_, learn, _ = Pipeline.parse(text).passes
    assert str(learn.sketch()) == "prune{sparsity=0.6 of=macs}"
    sketch = learn.sketch()
    assert sketch is not None
    assert sketch.sketch() == sketch
