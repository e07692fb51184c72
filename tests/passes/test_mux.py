"""Multiplexing: what a row's answer may depend on, and that all engines agree on it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification, AutoModelForTokenClassification

from prumux.export.graph.graph import build
from prumux.export.graph.graph_file import verify
from prumux.export.onnx import Onnx
from prumux.export.runtime.ort import OrtEngine
from prumux.export.runtime.predictor import load
from prumux.optimizer.base.errors import ModelError, PassError, UsageError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.artifact import load_artifact, save_artifact
from prumux.optimizer.model.cost import branch_cost, count
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.sizes import Keys
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.partner_sensitivity import partner_sensitivity
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.mux import Mux
from prumux.passes.slice import slice_model
from tests.helpers.factory import (
    Family,
    Kind,
    make_context,
    multiplexed,
    random_batch,
    random_model,
    tiny_tokenizer,
)
from tests.helpers.masking import random_masks, worst

FAMILIES: tuple[Family, ...] = get_args(Family)
KINDS: tuple[Kind, ...] = get_args(Kind)


def tiny(family: Family = "bert", task: Kind = "text-classification", **options: Any) -> Model:
    """Three layers, uneven, one block of each kind gone, with n rows mixed."""
    model = random_model(
        family, heads=(3, 0, 4), ffn=(5, 6, 0), hidden=16, task=task, labels=3
    )
    return multiplexed(model, **{"n": 2, "at": 1, **options})


def rows(batch: Batch, index: Any) -> dict[str, Any]:
    return {name: x[index] for name, x in batch.inputs().items()}


def answers(model: Model, inputs: dict[str, Any]) -> Any:
    return run(EncoderModule(model).eval(), inputs)


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(FAMILIES),
    task=st.sampled_from(KINDS),
    n=st.integers(2, 4),
    at=st.integers(0, 2),
    more=st.integers(1, 6),
    early=st.booleans(),
    seed=st.integers(0, 99),
)
def test_padding_changes_neither_a_rows_own_answer_nor_its_partners(
    *, family: Family, task: Kind, n: int, at: int, more: int, early: bool, seed: int
) -> None:
    model = tiny(family, task, n=n, at=at)
    early = early and model.encoder.pooled
    model = replace(model, encoder=replace(model.encoder, pool_early=early))
    batch = random_batch(model, rows=2 * n, length=8, seed=seed)
    found = answers(model, batch.inputs())
    fill = {"input_ids": model.encoder.pad_id, "attention_mask": 0, "token_type_ids": 0}
    padded = {
        name: np.pad(x, ((0, 0), (0, more)), constant_values=fill[name])
        for name, x in batch.inputs().items()
    }
    if model.encoder.positions_from == "index":  # what stands in padding has no part either
        junk = np.random.default_rng(seed).integers(1, 101, padded["input_ids"].shape)
        padded["input_ids"] = np.where(padded["attention_mask"] > 0, padded["input_ids"], junk)
    again = answers(model, padded)
    if not model.encoder.pooled:
        again = again[:, :8]
        real = batch.attention_mask > 0
        found, again = found[real], again[real]
    np.testing.assert_allclose(again, found, atol=2e-5)


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("at", [0, 2])
def test_groups_are_independent_and_slots_matter(task: Kind, at: int) -> None:
    model = tiny(task=task, n=3, at=at)
    batch = random_batch(model, rows=9, length=8)
    found = answers(model, batch.inputs())
    order = np.array([6, 7, 8, 0, 1, 2, 3, 4, 5])  # whole groups move, slots stay
    np.testing.assert_allclose(answers(model, rows(batch, order)), found[order], atol=1e-5)
    turned = np.array([1, 2, 0, 3, 4, 5, 6, 7, 8])
    moved = answers(model, rows(batch, turned))
    np.testing.assert_allclose(moved[3:], found[3:], atol=1e-5)
    assert np.abs(moved[:3] - found[turned[:3]]).max() > 1e-3


def test_a_partner_is_seen_and_no_other_row_is() -> None:
    model = tiny(n=2, at=0)
    batch = random_batch(model, rows=4, length=8)
    found = answers(model, batch.inputs())
    other = random_batch(model, rows=4, length=8, seed=5).inputs()
    inputs = {name: np.concatenate([x[:1], other[name][1:2], x[2:]]) for name, x in
              batch.inputs().items()}  # fmt: skip
    changed = answers(model, inputs)
    assert np.abs(changed[0] - found[0]).max() > 1e-3
    np.testing.assert_allclose(changed[2:], found[2:], atol=1e-5)


def test_copies_of_one_row_give_one_answer_where_slots_are_alike() -> None:
    model = tiny(n=3, at=1)
    same = {
        name: x[:1].expand_as(x).contiguous() if name in SLOTTED else x
        for name, x in model.weights.items()
    }
    model = replace(model, weights=same)
    batch = random_batch(model, rows=1, length=8)
    found = EncoderModule(model).eval()(
        **{k: torch.as_tensor(np.repeat(x, 3, 0)) for k, x in batch.inputs().items()}
    )
    assert worst(found, found[:1].expand_as(found)) < 1e-5


SLOTTED = ("mux.keys", "demux.scale", "demux.shift")


def test_any_number_of_rows_is_filled_with_the_tails_own() -> None:
    model = tiny(n=3, at=1)
    batch = random_batch(model, rows=7, length=8)
    found = answers(model, batch.inputs())
    whole = answers(model, rows(batch, np.arange(6)))
    np.testing.assert_allclose(found[:6], whole, atol=1e-5)
    inputs = {k: torch.as_tensor(x) for k, x in rows(batch, np.array([6, 6, 6])).items()}
    alone_mean = EncoderModule(model).eval()(**inputs).mean(0)
    np.testing.assert_allclose(found[6], alone_mean, atol=1e-5)
    # Two rows left over: the first of them fills the third slot and is averaged.
    batch = random_batch(model, rows=5, length=8)
    found = answers(model, batch.inputs())
    three = (
        EncoderModule(model)
        .eval()(**{k: torch.as_tensor(x) for k, x in rows(batch, np.array([3, 4, 3])).items()})
        .detach()
    )
    np.testing.assert_allclose(found[3], (three[0] + three[2]) / 2, atol=1e-5)
    np.testing.assert_allclose(found[4], three[1], atol=1e-5)


def test_the_module_itself_wants_whole_groups() -> None:
    model = tiny(n=3)
    inputs = {k: torch.as_tensor(x) for k, x in random_batch(model, rows=4).inputs().items()}
    with pytest.raises(
        UsageError, match="4 rows do not fill mixed rows of 3: give a multiple"
    ):
        EncoderModule(model)(**inputs)


def test_no_tensor_of_the_caller_changes() -> None:
    model = tiny(n=2, at=0)
    batch = random_batch(model, rows=3)
    inputs = batch.inputs()
    before = {name: x.copy() for name, x in inputs.items()}
    weights = {name: x.clone() for name, x in model.weights.items()}
    answers(model, inputs)
    assert all(np.array_equal(before[name], x) for name, x in inputs.items())
    assert all(torch.equal(weights[name], x) for name, x in model.weights.items())


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("n", "at"), [(2, 0), (3, 1), (2, 2)])
def test_torch_onnx_and_folder_agree(
    family: Family, task: Kind, n: int, at: int, tmp_path: Path
) -> None:
    model = tiny(family, task, n=n, at=at, demux=2)
    early = replace(model.encoder, pool_early=model.encoder.pooled)
    for each in (model, replace(model, encoder=early)):
        proto = build(each)
        verify(proto)
        engine = OrtEngine(proto.SerializeToString(), 1)
        save_artifact(each, tmp_path)
        loaded = load_artifact(tmp_path)
        assert loaded.encoder == each.encoder
        for count_ in (1, 2 * n, 2 * n + 1):
            batch = random_batch(each, rows=count_, length=7, seed=count_)
            real = batch.attention_mask > 0
            expected, found = answers(each, batch.inputs()), engine.run(batch.inputs())
            again = answers(loaded, batch.inputs())
            if not each.encoder.pooled:
                expected, found, again = expected[real], found[real], again[real]
            np.testing.assert_allclose(found, expected, atol=1e-4)
            np.testing.assert_allclose(again, expected, atol=1e-6)


@pytest.mark.parametrize("at", [0, 1])
def test_masked_is_sliced_with_hidden_masks(at: int) -> None:
    model = tiny(n=2, at=at)
    masked = replace(model, masks=random_masks(model.encoder, seed=3))
    sliced = slice_model(masked)
    assert sliced.encoder.hidden < model.encoder.hidden
    batch = random_batch(model, rows=4)
    a, b = answers(masked, batch.inputs()), answers(sliced, batch.inputs())
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("variant", get_args(Keys))
def test_the_pass_adds_what_the_sizes_say(variant: Keys) -> None:
    model = random_model(heads=(4, 4), hidden=16)
    ctx = make_context(model)
    found = Pipeline((Mux(4, 1, variant, 2),)).run(model, ctx)
    again = Pipeline((Mux(4, 1, variant, 2),)).run(model, ctx)
    keys = found.weights["mux.keys"]
    assert torch.equal(keys, again.weights["mux.keys"])
    assert keys.shape == (4, 16)
    if variant == "orthogonal":
        assert worst(keys @ keys.T, 16 * torch.eye(4)) < 1e-4
    assert all(found.weights[k] is x for k, x in model.weights.items())
    added = sum(x.numel() for k, x in found.weights.items() if k not in model.weights)
    assert found.history[0].notes == {"parameters": added}
    assert count(found.encoder, 10).mux_parameters == added


def test_what_it_costs() -> None:
    dense = random_model(heads=(4, 4), hidden=16, head_dim=4)
    mixed = multiplexed(dense, n=2, at=1)
    per_layer = branch_cost(dense.encoder, 10, "macs") / 2
    assert branch_cost(mixed.encoder, 10, "macs") == per_layer * 1.5
    cost = count(mixed.encoder, 10)
    assert cost.mux_macs == 16 * (10 + 1 + 2 * 16)
    assert cost.macs == count(dense.encoder, 10).macs - per_layer / 2 + cost.mux_macs


def test_what_the_pass_refuses() -> None:
    model = random_model(heads=(4, 4), hidden=16)
    ctx = make_context(model)
    for text, message in {
        "mux{n=2},mux{n=2}": "mixes 2 rows before layer 0 already",
        "mux{n=2},mux{n=2 at=1}": "only move that to an earlier layer",
        "mux{n=2 at=1},mux{n=3}": "with the same n, variant and demux",
        "mux{n=2 at=1},mux{n=2 demux=0}": "with the same n, variant and demux",
        "mux{n=2 at=1},mux{n=2 units=apart}": "and shared units",
        "mux{n=2 at=2}": r"at=2 is after the last of 2 layers; use mux\{n=2 at=1\}",
        "mux{n=17 variant=orthogonal}": "17 orthogonal keys do not fit into 16 dimensions",
        "warm-up{epochs=1}": "warm-up trains mux and demux, and the model has neither",
        "mux{n=2},prune{speedup=2}": "times single rows, the model mixes 2\nput mux after it",
    }.items():
        with pytest.raises(PassError, match=message):
            Pipeline.parse(text).run(model, replace(ctx, target=Onnx()))
    with pytest.raises(UsageError, match="n must be 1 or more, not 0"):
        Pipeline.parse("mux{n=0}")


def test_a_second_mux_moves_the_mixing_and_keeps_what_was_learnt() -> None:
    model = random_model(heads=(4, 4), hidden=16)
    ctx = make_context(model)
    late = Pipeline.parse("mux{n=2 at=1}").run(model, ctx)
    moved = Pipeline.parse("mux{n=2}").run(late, ctx)
    assert late.encoder.mux is not None
    assert late.encoder.mux.at == 1
    assert moved.weights is late.weights
    assert moved.encoder == Pipeline.parse("mux{n=2}").run(model, ctx).encoder


def test_one_row_in_one_is_no_mixing() -> None:
    model = random_model(heads=(4, 4), hidden=16)
    ctx = make_context(model)
    found = Pipeline.parse("mux{n=1},warm-up{epochs=1}").run(model, ctx)
    assert found.encoder == model.encoder
    assert found.weights is model.weights


def test_partners_are_drawn_anew_and_slots_are_counted() -> None:
    model = multiplexed(random_model(heads=(4, 4), hidden=16, labels=2), n=3, at=0)
    batch = random_batch(model, rows=31, length=9)
    rows = make_context(model, batch).fit
    labels = np.zeros(31, dtype=np.int64)
    found = partner_sensitivity(model, rows, labels, "accuracy")
    again = partner_sensitivity(model, rows, labels, "accuracy")
    assert found == again
    assert len(set(found.scores)) > 1
    assert len(found.slots) == 3
    assert 0 < found.depends_on_partners < 1
    assert found.mean == pytest.approx(np.mean(found.scores))
    # A model whose slots are alike and that mixes nothing depends on nobody.
    still = {
        name: torch.zeros_like(x) if name == "demux.scale" else x[:1].expand_as(x).contiguous()
        for name, x in model.weights.items() if name in SLOTTED
    }  # fmt: skip
    deaf = replace(model, weights={**model.weights, **still})
    assert partner_sensitivity(deaf, rows, labels, "accuracy").depends_on_partners == 0


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("n", [2, 3])
def test_the_graph_refuses_what_fills_no_groups(n: int, at: int) -> None:
    model = tiny(n=n, at=at)
    session = onnxruntime.InferenceSession(build(model).SerializeToString())
    for count_ in range(1, 3 * n):
        inputs = random_batch(model, rows=count_, length=7).inputs()
        if count_ % n == 0:
            assert len(session.run(None, inputs)[0]) == count_
        else:
            with pytest.raises(Exception, match=f"rows_must_be_a_multiple_of_{n}"):
                session.run(None, inputs)


@pytest.mark.parametrize("task", KINDS)
def test_hugging_face_and_fused_graphs_agree_with_torch(task: Kind, tmp_path: Path) -> None:
    model = replace(
        multiplexed(random_model(heads=(4, 4), hidden=16, task=task), n=3, at=1),
        tokenizer=tiny_tokenizer(),
    )
    save_artifact(model, tmp_path)
    auto: Any = {
        "text-classification": AutoModelForSequenceClassification,
        "token-classification": AutoModelForTokenClassification,
    }[task]
    loaded = auto.from_pretrained(tmp_path)
    for count_ in (1, 6, 8):
        batch = random_batch(model, rows=count_, length=7, seed=count_)
        given = {k: torch.as_tensor(x) for k, x in batch.inputs().items()}
        found = loaded(**given).logits.detach().numpy()
        real = batch.attention_mask > 0
        expected = answers(model, batch.inputs())
        if task == "token-classification":
            expected, found = expected[real], found[real]
        np.testing.assert_allclose(found, expected, atol=1e-5)
    ctx = make_context(model, random_batch(model, rows=7))
    for fusion in ("basic", "auto"):
        notes = Onnx(fusion=fusion).emit(model, ctx, tmp_path / fusion).notes
        assert max(notes["parity"].values()) < 1e-4
        assert Onnx().engine(tmp_path / fusion, 1).slots == 3, "fusing keeps the metadata"


def test_a_regression_model_mixes_rows_too() -> None:
    model = random_model(heads=(4, 4), hidden=16, labels=1)
    model = replace(model, task=Regression(model.task.labels))
    ctx = make_context(model, random_batch(model, rows=9))
    pruned = Pipeline.parse("mux{n=2 at=1},prune-heads{ratio=0.5},slice").run(model, ctx)
    batch = random_batch(model, rows=5)
    engine = OrtEngine(build(pruned).SerializeToString(), 1)
    expected = answers(pruned, batch.inputs())
    assert expected.shape == (5, 1)
    np.testing.assert_allclose(engine.run(batch.inputs()), expected, atol=1e-4)
    again = partner_sensitivity(pruned, ctx.fit, np.linspace(0, 1, 9), "pearson")
    assert 0 < again.depends_on_partners < 10


def test_a_folder_that_is_mixed_up_is_refused(tmp_path: Path) -> None:
    model = replace(tiny(n=2), tokenizer=tiny_tokenizer())
    save_artifact(model, tmp_path)
    Onnx(fusion="none").emit(tiny(n=3), make_context(tiny(n=3)), tmp_path)
    with pytest.raises(ModelError, match=r"rows mixed\nconfig\.json: 2\nengine: 3\n"):
        load(tmp_path)
