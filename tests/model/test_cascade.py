"""Cascades in torch: which rows are deferred, and what answers them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prumux.optimizer.base.errors import ModelError, VerifyError
from prumux.optimizer.model.artifact import (
    from_config,
    load_artifact,
    save_artifact,
    second_text,
    to_config,
)
from prumux.optimizer.model.cascade import (
    CascadeModule,
    deferred,
    module_of,
)
from prumux.optimizer.model.cost import count, count_model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.model.row_groups import margins, most_rows
from tests.helpers.cascades import cascade_of
from tests.helpers.factory import multiplexed, random_batch, random_model

ALL = 3e38
CALM = settings(max_examples=150, deadline=None, derandomize=True)


def test_margins_are_between_the_two_best() -> None:
    logits = np.array([[1.0, 4.0, 3.5], [2.0, 2.0, -9.0]])
    assert margins(logits).tolist() == [0.5, 0.0]


@pytest.mark.parametrize(
    ("rows", "share", "most"),
    [(10, 0.1, 1), (100, 0.07, 7), (1, 0.01, 1), (32, 0.1, 4), (3, 1.0, 3), (0, 0.5, 0)],
)
def test_a_share_of_a_batch_is_rounded_up(rows: int, share: float, most: int) -> None:
    assert most_rows(rows, share) == most


@CALM
@given(
    values=st.lists(st.floats(0, 5, width=32), min_size=1, max_size=20),
    threshold=st.floats(0, 5, width=32),
    share=st.sampled_from([1.0, 0.5, 0.2]),
)
def test_the_smallest_margins_are_deferred(
    values: list[float], threshold: float, share: float
) -> None:
    logits = torch.tensor([[x, 0.0] for x in values])
    rows = deferred(logits, threshold, share).tolist()
    assert rows == sorted(rows)
    below = [i for i, x in enumerate(values) if x < threshold]
    assert len(rows) == min(len(below), most_rows(len(values), share))
    kept = set(below) - set(rows)
    assert all(values[i] <= values[j] for i in rows for j in kept)


def test_rows_without_numbers_are_not_deferred() -> None:
    assert deferred(torch.tensor([[np.nan, 1.0], [0.1, 0.0]]), ALL).tolist() == [1]


@pytest.mark.parametrize("threshold", [0.0, 0.4, ALL])
def test_each_row_has_the_answer_of_its_stage(threshold: float) -> None:
    model = cascade_of(threshold)
    assert model.second is not None
    inputs = random_batch(model, rows=16).inputs()
    first = run(EncoderModule(model).eval(), inputs)
    second = run(EncoderModule(model.second.model).eval(), inputs)
    below = margins(first) < threshold
    assert {0.0: below.sum() == 0, 0.4: 0 < below.sum() < 16, ALL: below.all()}[threshold]
    expected = np.where(below[:, None], second, first)
    np.testing.assert_allclose(run(module_of(model).eval(), inputs), expected, atol=1e-5)


def test_answers_one_by_one_are_those_of_a_batch() -> None:
    model = cascade_of(0.4)
    inputs = random_batch(model, rows=16).inputs()
    module = module_of(model).eval()
    alone = [run(module, {k: v[i : i + 1] for k, v in inputs.items()}) for i in range(16)]
    np.testing.assert_allclose(np.concatenate(alone), run(module, inputs), atol=1e-5)


def test_a_model_without_second_stage_stays_one_module() -> None:
    assert isinstance(module_of(random_model()), EncoderModule)
    with pytest.raises(ValueError, match="use EncoderModule"):
        CascadeModule(random_model())


def test_the_first_stage_may_mix_rows() -> None:
    model = cascade_of(ALL, first=multiplexed(random_model(heads=(4, 4), head_dim=12)))
    assert model.second is not None
    inputs = random_batch(model, rows=5).inputs()
    alone = run(EncoderModule(model.second.model).eval(), inputs)
    np.testing.assert_allclose(run(module_of(model).eval(), inputs), alone, atol=1e-5)


def test_cost_counts_the_second_stage_by_its_share() -> None:
    model = cascade_of(0.4, share=0.25)
    assert model.second is not None
    one, two = count(model.encoder, 16), count(model.second.model.encoder, 16)
    found = count_model(model, 16)
    assert found.macs == one.macs + round(0.25 * two.macs)
    assert found.parameters == one.parameters + two.parameters
    bounded = replace(model, second=replace(model.second, max_share=0.1))
    assert count_model(bounded, 16).macs == one.macs + round(0.1 * two.macs)
    assert count_model(replace(model, second=None), 16) == one


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": 3}, "labels is 2 and 3"),
        ({"family": "distilbert"}, "token_types is 2 and 0"),
    ],
)
def test_stages_must_fit(change: dict[str, Any], said: str) -> None:
    other = random_model(heads=(4,), head_dim=12, **change)
    with pytest.raises(VerifyError, match=said):
        cascade_of(0.4, second=other).verify()


def test_the_second_stage_is_one_model_of_single_rows() -> None:
    mixed = multiplexed(random_model(heads=(4, 4), head_dim=12))
    for second in (mixed, cascade_of(0.1)):
        with pytest.raises(VerifyError, match="one model without mixed rows"):
            cascade_of(0.4, second=second).verify()


def test_an_artifact_keeps_both_stages(tmp_path: Path) -> None:
    model = cascade_of(0.4, max_share=0.5)
    save_artifact(model, tmp_path)
    loaded = load_artifact(tmp_path)
    assert str(loaded.second) == str(model.second) == second_text(to_config(model))
    inputs = random_batch(model, rows=8).inputs()
    given, found = (run(module_of(x).eval(), inputs) for x in (model, loaded))
    assert np.array_equal(given, found)
    assert second_text(to_config(random_model())) == "none"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"threshold": -1.0}, "threshold of the second stage is -1.0"),
        ({"threshold": "x"}, "threshold of the second stage is 'x'"),
        ({"share": 2}, "share of the second stage is 2"),
        ({"heads_per_layer": [1]}, "not one that prumux wrote"),
        ({"encoder": None}, "not one that prumux wrote"),
    ],
)
def test_a_damaged_second_stage_is_refused(change: dict[str, Any], said: str) -> None:
    config = to_config(cascade_of(0.4))
    config["second"] = {**config["second"], **change}
    with pytest.raises(ModelError, match=said):
        from_config(config)
    with pytest.raises(ModelError, match="not one that prumux wrote"):
        from_config({**config, "second": [1]})


def test_hugging_face_loads_and_saves_both_stages(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification as Auto

    import prumux  # noqa: F401 - registers the model type

    model = cascade_of(0.4, max_share=0.5)
    save_artifact(model, tmp_path / "one")
    inputs = random_batch(model, rows=8).inputs()
    expected = run(module_of(model).eval(), inputs)
    tensors = {k: torch.as_tensor(v) for k, v in inputs.items()}
    loaded = Auto.from_pretrained(tmp_path / "one").eval()
    loaded.save_pretrained(tmp_path / "two")
    again = Auto.from_pretrained(tmp_path / "two").eval()
    for module in (loaded, again):
        with torch.inference_mode():
            found = module(**tensors).logits.numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
    assert json.loads((tmp_path / "two" / "config.json").read_text())["second"]
