"""`bag`: its text, what it refuses, what it learns from, and its counted cost."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prumux.optimizer.base.errors import PassError, SpecError
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from prumux.optimizer.model.cost import count_model
from prumux.optimizer.model.families.bag import PRIME, bag_sizes
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.pipeline import Pipeline
from prumux.optimizer.search.builder import Builder
from prumux.optimizer.tasks.multilabel import MultiLabel
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.bag import Bag
from prumux.passes.bags.features import bag_features
from prumux.passes.bags.teaching import piece_rows
from tests.helpers.checkpoints import same
from tests.helpers.embeddings import encoder_folder
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model

TAUGHT = "bag{buckets=64}"


def given_model(**fields: Any) -> Model:
    return random_model(heads=(3, 3), head_dim=16, **fields)


def rows_of(
    *ids: tuple[int, ...], labels: Any = None, types: tuple[tuple[int, ...], ...] = ()
) -> Encoded:
    kinds = Ragged.of(types or [(0,) * len(x) for x in ids])
    return Encoded(Ragged.of(ids), kinds, labels, pad_id=0)


def context(model: Model, rows: Encoded, **fields: Any) -> Context:
    store = Store(Path(tempfile.mkdtemp()))
    return replace(make_context(model, store=store), fit=rows, select=rows, **fields)


def random_rows(count: int, seed: int = 0, vocab: int = 101) -> Encoded:
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, count)
    return rows_of(*((1, *random.integers(4, vocab, n).tolist(), 2) for n in lengths))


def logits_of(model: Model, rows: Encoded) -> Any:
    return np.stack(row_logits(torch_run(model), rows))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pairs": "off"},
        {"pairs": "on", "buckets": 99, "rows": 7, "ridge": 0.1, "steps": 3},
    ],
)
def test_print_and_parse_are_inverse(options: dict[str, Any]) -> None:
    pipeline = Pipeline((Bag(**options),))
    assert Pipeline.parse(str(pipeline)) == pipeline


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("pairs=some", "option 'pairs' wants auto or on or off"),
        ("buckets=0", "buckets must be 1..4194304, not 0"),
        ("rows=0", "rows must be 1..2147483648, not 0"),
        ("steps=0", "steps must be 1..10000, not 0"),
        ("ridge=0", "ridge must be above 0, not 0"),
    ],
)
def test_bad_options_are_underlined(options: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(f"bag{{{options}}}")
    assert said in str(caught.value)
    assert str(caught.value).splitlines()[-1].strip(" ^") == ""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bag,slice", "'slice' stands after 'bag', which leaves nothing that it could change"),
        ("bag,mux{n=2}", "'mux' stands after 'bag'"),
        ("bag,distill{epochs=1}", "put 'bag' last, or only 'cascade' after it"),
        ("mux{n=2},bag", "the one before it mixes rows"),
        ("prune-ffn{ratio=0.5},bag", "the one before it has masks"),
    ],
)
def test_where_it_may_stand(text: str, said: str) -> None:
    model = given_model()
    with pytest.raises(PassError, match=said) as caught:
        Pipeline.parse(text).run(model, context(model, random_rows(20)))
    assert caught.value.exit_code == 2


def test_tasks_that_it_refuses(tmp_path: Path) -> None:
    tagger = given_model(task="token-classification")
    embedder = load_model(str(encoder_folder(tmp_path / "e")), "mean")
    for model, name in ((tagger, "token-classification"), (embedder, "embedding")):
        with pytest.raises(PassError, match=f"this is a .*{name}.* model: leave 'bag' out"):
            Bag().check_given(model)
    model = given_model()
    by_query = replace(random_rows(20), groups=np.arange(20) // 2)
    with pytest.raises(PassError, match="bag knows no queries"):
        Bag().run(model, context(model, by_query))
    mixing = multiplexed(given_model())
    with pytest.raises(PassError, match="mixes rows"):
        Bag().requires(mixing)


def test_features_are_what_the_module_sums() -> None:
    model = given_model(pad_id=3)
    rows = rows_of((5, 6, 7), (9,), (6, 7, 6, 7), types=((0, 0, 1), (0,), (0, 1, 1, 1)))
    rows = replace(rows, pad_id=3)
    bag = Pipeline.parse("bag{pairs=on buckets=11}").run(model, context(model, rows))
    tables = [bag.weights[f"embeddings.{x}.weight"] for x in ("piece", "pair")]
    features = bag_features(rows, bag.encoder)
    vectors = torch.cat(tables).numpy()[features.used]
    expected = features.matrix @ vectors + bag.weights["head.output.bias"].numpy()
    np.testing.assert_allclose(logits_of(bag, rows), expected, atol=1e-5)
    second = 101 + 7  # the third piece is of the second text
    pairs = [(a * PRIME + b) % 11 for a, b in ((3, 5), (5, 6), (6, 7))]
    by_hand = tables[0][[5, 6, second]].sum(0) + tables[1][pairs].sum(0)
    found = torch.as_tensor(logits_of(bag, rows)[0]) - bag.weights["head.output.bias"]
    torch.testing.assert_close(found, by_hand / 3**0.5)


def test_other_rows_over_the_same_vectors() -> None:
    sizes = bag_sizes(given_model().encoder, 2, 11)
    some, others = random_rows(30), random_rows(20, seed=1)
    whole = bag_features(others, sizes)
    found = bag_features(some, sizes).of(others, sizes)
    for i, column in enumerate(found.used):
        at = np.flatnonzero(whole.used == column)
        expected = whole.matrix[:, at].toarray().ravel() if len(at) else np.zeros(20)
        np.testing.assert_array_equal(found.matrix[:, i].toarray().ravel(), expected)


def test_it_learns_the_given_models_answers() -> None:
    rows = random_rows(400)
    sizes = bag_sizes(given_model().encoder, 2, 0)
    truth = Pipeline.parse("bag{pairs=off rows=1 steps=1}").run(
        given_model(), context(given_model(), rows)
    )
    random = torch.Generator().manual_seed(0)
    table = torch.randn(2 * 101, 2, generator=random)
    teacher = replace(truth, weights={**truth.weights, "embeddings.piece.weight": table})
    assert teacher.encoder == sizes
    unseen = random_rows(300, seed=5)
    ctx = replace(context(given_model(), rows), dense=teacher)
    student = Pipeline.parse("bag{pairs=off ridge=0.01}").run(given_model(), ctx)
    same_answers = logits_of(student, unseen).argmax(1) == logits_of(teacher, unseen).argmax(1)
    assert same_answers.mean() > 0.95


def test_labels_stand_for_rows_that_the_model_was_not_asked() -> None:
    plain = random_rows(300)
    labels = np.array([int(x[1] > 50) for x in plain.ids])
    rows, model = replace(plain, labels=labels), given_model()
    bag = Pipeline.parse("bag{rows=1}").run(model, context(model, rows))
    assert bag.history[-1].notes["labelled_rows"] == 299
    assert (logits_of(bag, rows).argmax(1) == labels).mean() > 0.95
    blind = Pipeline.parse("bag{rows=10}").run(model, context(model, plain))
    assert blind.history[-1].notes["labelled_rows"] == 0
    assert blind.history[-1].notes["taught_rows"] == 10


def ordered_rows(seed: int, first: int = 1) -> Encoded:
    """The label is `first` where the piece 10 stands before 20; pieces alone tell nothing."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 2, 400)
    ends = [(10, 20) if x == first else (20, 10) for x in labels]
    ids = [(1, *random.integers(30, 99, 3).tolist(), *x, 2) for x in ends]
    return rows_of(*ids, labels=labels)


def test_pairs_are_kept_where_they_pay() -> None:
    model, rows = given_model(), ordered_rows(0)
    ctx = replace(context(model, rows), select=ordered_rows(1))
    bag = Pipeline.parse("bag{rows=1}").run(model, ctx)
    notes = bag.history[-1].notes
    assert notes["select_loss"]["pairs"] < notes["select_loss"]["pieces"]
    assert notes["pairs"] is True
    assert (logits_of(bag, ordered_rows(2)).argmax(1) == ordered_rows(2).labels).all()


def test_pairs_are_left_out_where_they_mislead() -> None:
    model, rows = given_model(), ordered_rows(0)
    ctx = replace(context(model, rows), select=ordered_rows(1, first=0))
    bag = Pipeline.parse("bag{rows=1}").run(model, ctx)
    notes = bag.history[-1].notes
    assert notes["select_loss"]["pieces"] < notes["select_loss"]["pairs"]
    assert notes["pairs"] is False
    assert "embeddings.pair.weight" not in bag.weights


def test_the_same_seed_gives_the_same_bag() -> None:
    model, rows = given_model(), random_rows(60)
    text = "bag{rows=20}"
    one, two = (Pipeline.parse(text).run(model, context(model, rows)) for _ in range(2))
    assert same(one, two)
    other = Pipeline.parse(text).run(model, context(model, rows, seed=1))
    assert not same(one, other)


def test_single_pieces_are_asked_for_where_rows_begin_and_end_alike() -> None:
    model = given_model()
    rows = random_rows(30)
    ctx = context(model, rows)
    found = piece_rows(rows, ctx)
    assert len(found) == 101 - 3  # all but padding and both ends
    assert {(int(x[0]), int(x[2])) for x in found.ids} == {(1, 2)}
    often = np.bincount(rows.ids.values, minlength=101)
    counts = [int(often[x[1]]) for x in found.ids]
    assert counts == sorted(counts, reverse=True)
    bag = Pipeline.parse(TAUGHT).run(model, ctx)
    assert bag.history[-1].notes["taught_pieces"] == 98
    unseen = int(np.flatnonzero(often[4:] == 0)[0]) + 4
    assert bag.weights["embeddings.piece.weight"][unseen].abs().max() > 0
    none = rows_of((1, 5, 2), (3, 5, 2))
    pairs = rows_of((1, 5, 2, 6, 2), (1, 6, 2, 7, 2), types=((0, 0, 0, 1, 1),) * 2)
    for other in (none, pairs, rows_of((5,), (5,))):
        assert len(piece_rows(other, context(model, other))) == 0


@pytest.mark.parametrize("task", [Regression(("score",)), MultiLabel(("a", "b", "c"))])
def test_scores_and_several_labels(task: Any) -> None:
    labels = len(task.labels)
    model = replace(given_model(labels=labels), task=task)
    rows = random_rows(80)
    bag = Pipeline.parse("bag{ridge=0.001}").run(model, context(model, rows))
    found, wanted = logits_of(bag, rows), logits_of(model, rows)
    assert found.shape == (80, labels)
    for i in range(labels):
        assert np.corrcoef(found[:, i], wanted[:, i])[0, 1] > 0.8


def test_counted_cost_and_its_sketch() -> None:
    model, rows = given_model(), random_rows(40)
    ctx = context(model, rows)
    bag = Pipeline.parse("bag{pairs=on buckets=64}").run(model, ctx)
    cost = count_model(bag, ctx.length)
    assert cost.parameters == (2 * 101 + 64) * 2 + 4 + 2
    assert cost.size_bytes == 4 * cost.parameters
    assert cost.macs == 2 * ctx.length + 4
    assert cost.encoder_parameters == 0
    pipeline = Pipeline.parse("bag{pairs=on buckets=64}")
    assert Builder(model, ctx).cost(pipeline) == cost
    cascade = pipeline.then(*Pipeline.parse("cascade{defer=0.5}").passes).run(model, ctx)
    assert cascade.second is not None
    both = count_model(cascade, ctx.length).macs
    dense = count_model(model, ctx.length).macs
    assert both == cost.macs + round(cascade.second.share * dense)


def test_many_classes_have_fewer_buckets() -> None:
    model = given_model(labels=77)
    rows = random_rows(30)
    bag = Bag(pairs="on", buckets=2**20)
    sizes = bag._sizes(model, True)
    assert sizes.number("buckets") == 2**21 // 77
    made = bag.sketch().run(model, context(model, rows))
    assert made.encoder == sizes


def test_no_rows_of_the_select_set_are_learnt() -> None:
    model, rows = given_model(), random_rows(60)
    ctx = context(model, rows)
    changed = replace(
        ctx, select=random_rows(10, seed=9), store=Store(Path(tempfile.mkdtemp()))
    )
    one, two = (Pipeline.parse("bag{pairs=on}").run(model, x) for x in (ctx, changed))
    assert same(one, two)


def test_a_random_batch_is_enough_for_a_context() -> None:
    model = given_model()
    ctx = make_context(model, random_batch(model, rows=40))
    assert Pipeline.parse("bag").run(model, ctx).encoder.family == "bag"


@pytest.mark.parametrize(
    ("text", "cure"),
    [
        ("trim-vocabulary,cascade", "put 'trim-vocabulary' last, and leave 'cascade' out"),
        ("cascade,trim-vocabulary", "put 'cascade' last, and leave 'trim-vocabulary' out"),
        ("bag,trim-vocabulary", "put 'bag' last, and leave 'trim-vocabulary' out"),
        ("trim-vocabulary,bag", "put 'trim-vocabulary' last, and leave 'bag' out"),
        ("bag,bag", "put 'bag' last, and leave the other one out"),
        ("trim-vocabulary,slice", "put 'trim-vocabulary' last"),
        ("cascade,bag", "put 'cascade' last"),
        ("bag,slice", "put 'bag' last, or only 'cascade' after it"),
    ],
)
def test_the_cure_of_an_order_is_an_order_that_works(text: str, cure: str) -> None:
    with pytest.raises(PassError) as caught:
        Pipeline.parse(text).check_order()
    assert str(caught.value).endswith(f"\n{cure}")
    assert caught.value.exit_code == 2
