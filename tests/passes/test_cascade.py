"""`cascade`: its text, what it refuses, its threshold, and what it keeps and reuses."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import PassError, SpecError
from prumux.optimizer.base.store import Store
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.model.cascade import ALL, threshold_at
from prumux.optimizer.model.cost import count_model
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import margins
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.model_store import ModelStore
from prumux.optimizer.pipeline.passes import TrainingLength
from prumux.optimizer.pipeline.pipeline import Pipeline, count_parameters
from prumux.optimizer.search.builder import Builder
from prumux.optimizer.tasks.regression import Regression
from prumux.passes.cascade import Cascade
from tests.helpers.checkpoints import config, write
from tests.helpers.factory import make_context, random_batch, random_model

CUT = "pool-early,prune-ffn{ratio=0.5},slice"
LARGER = "pool-early,prune-ffn{ratio=0.2},slice"
CALM = settings(max_examples=150, deadline=None, derandomize=True)


def given_model() -> Model:
    return random_model(heads=(3, 3), head_dim=16)


def context(model: Model, **fields: Any) -> Context:
    return make_context(
        model, random_batch(model, rows=40), store=Store(Path(tempfile.mkdtemp())), **fields
    )


def text(first: str, **options: Any) -> str:
    return str(Pipeline((*Pipeline.parse(first).passes, Cascade(**options))))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"to": LARGER, "defer": 0.35},
        {"to": "pool-early", "max_share": 0.25},
        {"to": 'warm-up{epochs=1.0 text="a \\"b\\".txt"}'},
    ],
)
def test_print_and_parse_are_inverse(options: dict[str, Any]) -> None:
    pipeline = Pipeline((Cascade(**options),))
    assert Pipeline.parse(str(pipeline)) == pipeline
    (one,) = pipeline.passes
    assert str(Pipeline(one.second_stage or ())) == options.get("to", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("defer=1.5", "defer must be in [0, 1], not 1.5"),
        ("max_share=0", "max_share must be above 0 and at most 1, not 0"),
        ('to="prun"', "to: no pass is called 'prun'; did you mean 'prune'?"),
        ('to="mux{n=2}"', "to: 'mux{n=2}' cannot be: the second model takes rows one by one"),
        ('to="cascade"', "to: 'cascade' cannot be"),
        ('to="prune{sparsity=0.5}"', "add slice"),
        ('to="prune{sparsity=0.5|0.6},slice"', "has 2 alternatives"),
    ],
)
def test_bad_options_are_underlined(options: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        Pipeline.parse(f"slice,cascade{{{options}}}")
    message = str(caught.value)
    assert said in message
    assert message.splitlines()[-1].strip(" ^") == ""


def test_a_space_of_second_models() -> None:
    space = Pipeline.space('pool-early,cascade{to=""|"pool-early" defer=0.1|0.2}')
    assert len(space) == 4
    assert {len(x.stages) for x in space} == {2}


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("cascade,slice", "'slice' stands after 'cascade'"),
        ("prune-ffn{ratio=0.5},cascade", "write slice before it: slice,cascade"),
    ],
)
def test_where_it_may_stand(first: str, said: str) -> None:
    model = given_model()
    with pytest.raises(PassError, match=said) as caught:
        Pipeline.parse(first).run(model, context(model))
    assert caught.value.exit_code == 2


def test_no_pass_takes_a_cascade() -> None:
    model = given_model()
    made = Pipeline.parse("cascade").run(model, context(model))
    with pytest.raises(PassError, match="a cascade of two models, which no pass takes"):
        Pipeline.parse("slice").run(made, context(model))


def test_a_family_that_needs_rows_is_refused(tmp_path: Path) -> None:
    given = load_model(str(write(tmp_path, config("deberta-v2"), None)))
    with pytest.raises(PassError, match="runs no deberta-v2 model without rows"):
        Cascade().check_given(given)


def test_tasks_without_classes_of_rows_are_refused() -> None:
    tokens = random_model(task="token-classification")
    regression = replace(random_model(labels=1), task=Regression(("score",)))
    for model, name in ((tokens, "token-classification"), (regression, "regression")):
        with pytest.raises(PassError, match=f"this is a {name} model") as caught:
            Cascade().check_given(model)
        assert caught.value.exit_code == 2
    Cascade().check_given(random_model(labels=7))


@CALM
@given(
    values=st.lists(st.floats(0, 10, width=32), min_size=1, max_size=300),
    share=st.floats(0, 1),
)
def test_the_threshold_defers_the_share(values: list[float], share: float) -> None:
    margin = np.array(values, np.float32)
    threshold = threshold_at(margin, share)
    assert float(np.float32(threshold)) == threshold
    found = int((margin < threshold).sum())
    wanted = round(share * len(margin))
    if wanted in (0, len(margin)):
        assert found == wanted
        return
    near = int(0.005 * len(margin)) + 1
    tied = int(np.isclose(margin, threshold, rtol=1e-6).sum())
    assert abs(found - wanted) <= near + tied


def test_the_threshold_stands_in_a_wide_gap() -> None:
    margin = np.concatenate([np.linspace(0, 1, 201), np.linspace(2, 3, 799)])
    assert threshold_at(margin.astype(np.float32), 0.2) == pytest.approx(1.5)
    assert threshold_at(margin.astype(np.float32), 1.0) == ALL


def test_the_share_is_that_of_the_select_rows() -> None:
    model = given_model()
    plain = context(model)
    ctx = replace(plain, select=plain.fit.take(range(20)))
    found = Pipeline.parse(text(CUT, to=LARGER, defer=0.25)).run(model, ctx)
    assert found.second is not None
    assert ctx.select is not None
    one = replace(found, second=None)
    margin = margins(np.stack(row_logits(torch_run(one), ctx.select)))
    assert int((margin < found.second.threshold).sum()) == 5
    assert found.second.share == 0.25
    notes = found.history[-1].notes
    assert notes["deferred"] == 0.25
    assert notes["threshold"] == found.second.threshold
    assert [x["spec"] for x in notes["second"]] == LARGER.split(",")
    assert len(notes["margins"]) == 21
    both = count_parameters(one) + count_parameters(found.second.model)
    assert count_parameters(found) == found.history[-1].parameters_after == both


def test_the_second_model_is_that_of_its_own_pipeline() -> None:
    model = given_model()
    found = Pipeline.parse(text(CUT, to=LARGER)).run(model, context(model))
    alone = Pipeline.parse(LARGER).run(model, context(model))
    assert found.second is not None
    assert found.second.model.encoder == alone.encoder
    assert all(torch.equal(x, alone.weights[k]) for k, x in found.second.model.weights.items())
    dense = Pipeline.parse(text(CUT)).run(model, context(model)).second
    assert dense is not None
    assert dense.model.encoder == model.encoder


def test_a_stored_second_model_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = given_model()
    ctx = context(model)
    builder = Builder(model, ctx)
    larger = builder.build(Pipeline.parse(LARGER))
    first = builder.build(Pipeline.parse(CUT))

    def refuse(*args: Any) -> None:
        raise AssertionError(args)

    from prumux.passes.slice import Slice

    monkeypatch.setattr(Slice, "run", refuse)
    found = builder.build(Pipeline.parse(text(CUT, to=LARGER)))
    assert found.second is not None
    assert found.encoder == first.encoder
    assert found.second.model.encoder == larger.encoder


def test_a_stored_cascade_is_loaded_whole() -> None:
    model = given_model()
    ctx, pipeline = context(model), Pipeline.parse(text(CUT, to=LARGER, max_share=0.5))
    built = Builder(model, ctx).build(pipeline)
    loaded = ModelStore(model, ctx.store).load(pipeline)
    loaded.verify()
    assert str(loaded.second) == str(built.second)
    assert loaded.history == built.history
    inputs = random_batch(model, rows=12).inputs()
    assert np.array_equal(torch_run(loaded)(inputs), torch_run(built)(inputs))


def test_sketch_and_cost_have_both_models() -> None:
    model = given_model()
    ctx, pipeline = context(model), Pipeline.parse(text(CUT, to=LARGER, defer=0.5))
    builder = Builder(model, ctx)
    rough = builder.untrained(pipeline)
    assert rough.second is not None
    assert rough.second.share == pytest.approx(0.5, abs=0.03)
    exact = count_model(builder.build(pipeline), ctx.length)
    assert builder.cost(pipeline).macs == pytest.approx(exact.macs, rel=0.03)
    assert count_model(rough, ctx.length).parameters == exact.parameters


def test_training_measuring_and_files_are_those_of_the_second_pipeline(tmp_path: Any) -> None:
    assert Cascade().training is None
    trains = Cascade(to="distill{minutes=2},distill{epochs=3}")
    assert trains.training == TrainingLength(2.0, 3.0, 1.0)
    assert Cascade(to="prune{speedup=2},slice").measures
    assert not Cascade(to=LARGER).measures
    file = tmp_path / "a.txt"
    file.write_text("abc\n")
    assert Cascade(to=f'warm-up{{text="{file}" epochs=1}}').input_files == (file,)
