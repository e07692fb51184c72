"""Training multiplexed models, on tiny ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Keys
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.passes.training.plain_text import plain_rows
from tests.helpers.datafiles import write
from tests.helpers.factory import (
    Kind,
    make_context,
    random_batch,
    random_model,
    tiny_tokenizer,
)

KINDS: tuple[Kind, ...] = get_args(Kind)


def dense(task: Kind = "text-classification") -> Model:
    return random_model(heads=(4, 4), hidden=16, head_dim=4, ffn=(32, 32), task=task)


def trained(model: Model, text: str, rows: int = 65) -> Model:
    coded = make_context(model, random_batch(model, rows=rows, length=9)).fit
    ctx = make_context(model, random_batch(model), train=coded, select=coded)
    return Pipeline.parse(text).run(model, ctx)


def harm(model: Model) -> list[float]:
    found: list[float] = model.history[-1].notes["validation_loss"]
    return found


@pytest.mark.parametrize("task", KINDS)
@pytest.mark.parametrize("at", [0, 1])
def test_states_come_nearer(task: Kind, at: int) -> None:
    found = trained(dense(task), f"mux{{n=2 at={at}}},warm-up{{epochs=20 lr=3e-3 batch=16}}")
    assert min(harm(found)) < 0.8 * harm(found)[0]


@pytest.mark.parametrize("task", KINDS)
def test_distilling_a_mixed_model_comes_nearer_to_the_dense_answers(task: Kind) -> None:
    text = "mux{n=2},distill{epochs=20 lr=3e-3 batch=16 labels=0}"
    found = trained(dense(task), text)
    assert min(harm(found)) < 0.8 * harm(found)[0]


def test_token_retrieval_learns() -> None:
    text = "mux{n=2},warm-up{epochs=20 lr=3e-3 batch=16 states=0 tokens=1}"
    model = dense()
    found, start = trained(model, text), trained(model, "mux{n=2}")
    assert min(harm(found)) < 0.9 * harm(found)[0]
    assert not torch.equal(found.weights["mux.keys"], start.weights["mux.keys"])
    tables = ("embeddings.word.weight", "embeddings.position.weight")
    assert all(torch.equal(found.weights[k], model.weights[k]) for k in tables)


@pytest.mark.parametrize("variant", get_args(Keys))
def test_only_learned_keys_move(variant: Keys) -> None:
    model = dense()
    start = trained(model, f"mux{{n=2 variant={variant}}}").weights
    text = f"mux{{n=2 variant={variant}}},warm-up{{epochs=2 batch=16}}"
    found = trained(model, text).weights
    assert torch.equal(found["mux.keys"], start["mux.keys"]) == (variant != "learned")
    assert not torch.equal(found["demux.0.up.weight"], start["demux.0.up.weight"])


def test_a_run_repeats_exactly() -> None:
    text = "mux{n=3 at=1},warm-up{epochs=1 batch=9},distill{epochs=1 batch=9}"
    a, b = (trained(dense(), text) for _ in range(2))
    assert all(torch.equal(b.weights[k], x) for k, x in a.weights.items())


def test_pruned_before_and_after() -> None:
    text = (
        "prune-hidden{keep=12},prune-heads{ratio=0.5},slice,mux{n=2 at=1},"
        "warm-up{epochs=1 batch=16},prune{sparsity=0.7 of=macs},slice,"
        "distill{epochs=1 batch=16}"
    )
    found = trained(dense(), text)
    assert found.encoder.hidden == 12
    assert found.encoder.slots == 2
    found.verify()


def test_masks_are_learnt_on_mixed_rows() -> None:
    text = "mux{n=2 at=1},learn-masks{sparsity=0.5 of=macs epochs=2 batch=16},slice"
    found = trained(dense(), text)
    assert sum(x.ffn for x in found.encoder.layers) < 64
    assert np.isfinite(harm_of(found, "learn-masks")).all()


def harm_of(model: Model, name: str) -> list[float]:
    receipt = next(x for x in model.history if x.spec.startswith(name))
    found: list[float] = receipt.notes["validation_loss"]
    return found


def test_too_few_rows_to_fill_a_group() -> None:
    model = dense()
    few = make_context(model, random_batch(model, rows=3)).fit
    ctx = make_context(model, random_batch(model), train=few, select=few)
    assert isinstance(few, Encoded)
    with pytest.raises(PassError, match="3 rows fill no mixed row of 5: give 5 or more"):
        Pipeline.parse("mux{n=5},warm-up{epochs=1 augment=0}").run(
            model, replace(ctx, train=few)
        )


def test_on_unlabelled_text(tmp_path: Path) -> None:
    path = tmp_path / "plain.jsonl"
    texts = ["good film and a bad play " * 20, "", "a " * 30, "film"]
    write(path, text=texts)
    model = replace(dense(), tokenizer=tiny_tokenizer())
    like = make_context(model, random_batch(model, rows=40, length=9)).fit
    rows = plain_rows(str(path), model, like, seed=0)
    assert rows.lengths.max() <= max(3, like.lengths.max())
    assert all((x[0], x[-1]) == (2, 3) for x in rows.ids), "[CLS] and [SEP]"
    tokens = sum(len(tiny_tokenizer().tokenize(x)) for x in texts)
    assert sum(len(x) - 2 for x in rows.ids) == tokens, "no token is lost"
    ctx = make_context(model, random_batch(model), train=like, select=like)
    text = f'mux{{n=2}},warm-up{{epochs=2 batch=8 text="{path}"}}'
    found = Pipeline.parse(text).run(model, ctx)
    assert np.isfinite(harm(found)).all()
    write(path, words=["a"])
    with pytest.raises(PassError, match=r"no column of text; it has: words\nname one of them"):
        Pipeline.parse(text).run(model, ctx)


@pytest.mark.parametrize("text", ["prune{sparsity=0.4 of=macs by=second-order}",
                                  "prune-heads{ratio=0.5}", "prune-hidden{keep=12}",
                                  "prune-layers{ffn=1}"])  # fmt: skip
def test_every_way_to_prune_takes_mixed_rows(text: str) -> None:
    model = dense()
    before = trained(model, "mux{n=3 at=1}")
    found = trained(model, f"mux{{n=3 at=1}},{text},slice")
    assert found.encoder.slots == 3
    lost = before.encoder != found.encoder
    assert lost, "slice compares masked and sliced itself"
