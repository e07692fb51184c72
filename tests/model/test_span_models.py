"""Models that find spans: every family as transformers has it, in torch, ONNX, as a result."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForQuestionAnswering, AutoModelForTokenClassification

import prumux.optimizer.model.prumux_model  # noqa: F401 - registers the model classes
from prumux.export.graph.graph import build
from prumux.export.runtime.ort import OrtEngine, session_options
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.passes.slice import slice_model
from tests.helpers.checkpoints import config, refused, state, write
from tests.helpers.factory import random_batch
from tests.helpers.masking import random_masks
from tests.helpers.questions import model_folder

FAMILIES = (
    *("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "electra", "mpnet"),
    *("deberta-v2", "albert", "modernbert"),
)
NAMES = ["logits", "start_logits", "end_logits"]


def theirs(module: Any, batch: Batch) -> Tensor:
    """Start and end logits of transformers, [B, T, 2]."""
    with torch.no_grad():
        found = module(**{k: torch.as_tensor(v) for k, v in batch.inputs().items()})
    return torch.stack([found.start_logits, found.end_logits], -1)


def ours(model: Model, batch: Batch) -> Tensor:
    from prumux.optimizer.data.predict import torch_run

    return torch.as_tensor(torch_run(model)(batch.inputs()))


def outputs(model: Model, batch: Batch, **options: Any) -> list[Any]:
    """All outputs of the ONNX graph: logits, start_logits and end_logits."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        build(model, **options).SerializeToString(), session_options(1)
    )
    assert [x.name for x in session.get_outputs()] == NAMES
    names = [x.name for x in session.get_inputs()]
    found: list[Any] = session.run(NAMES, {k: batch.inputs()[k] for k in names})
    return found


def worst(a: Any, b: Any, batch: Batch) -> float:
    """The largest difference at real positions."""
    real = torch.as_tensor(batch.attention_mask) > 0
    return float((torch.as_tensor(a) - torch.as_tensor(b))[real].abs().max())


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model", family)
    module, info = AutoModelForQuestionAnswering.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"]
    model = load_model(str(folder))
    batch = random_batch(model, rows=5, length=17)
    wanted = theirs(module.eval(), batch)
    assert float(wanted.std()) > 0.05
    assert worst(ours(model, batch), wanted, batch) <= 1e-4
    logits, start, end = outputs(model, batch)
    assert worst(logits, wanted, batch) <= 1e-4
    assert np.array_equal(np.stack([start, end], -1), logits)
    small = slice_model(replace(model, masks=random_masks(model.encoder, 0)))
    expected = ours(small, batch)
    for ragged in (False, True):
        assert worst(outputs(small, batch, ragged=ragged)[0], expected, batch) <= 1e-4
    save_artifact(small, tmp_path / "small")
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "small").eval()
    assert type(again).__name__ == "PrumuxForQuestionAnswering"
    assert worst(theirs(again, batch), expected, batch) <= 1e-6


def test_a_result_has_the_loss_of_transformers(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "model")
    model = load_model(str(folder))
    save_artifact(model, tmp_path / "result")
    batch = random_batch(model, rows=4, length=9)
    inputs = {k: torch.as_tensor(v) for k, v in batch.inputs().items()}
    places = {
        "start_positions": torch.tensor([1, 0, 50, 3]),  # 50 is beyond the row: not scored
        "end_positions": torch.tensor([[2], [0], [8], [4]]),
    }
    found = [
        AutoModelForQuestionAnswering.from_pretrained(x).eval()(**inputs, **places)
        for x in (folder, tmp_path / "result")
    ]
    assert float(found[1].loss.detach()) == pytest.approx(float(found[0].loss.detach()))
    again = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "result")
    assert len(again(**inputs, return_dict=False)) == 2
    with pytest.raises(ModelError, match="question-answering model, not a token-class"):
        AutoModelForTokenClassification.from_pretrained(tmp_path / "result")


def test_other_outputs_only_where_they_are_asked_for(tmp_path: Path) -> None:
    model = load_model(str(model_folder(tmp_path)))
    portable = build(model, portable=True)
    assert [x.name for x in portable.graph.output] == ["logits"]
    low = build(model, precision="fp16")
    assert [x.name for x in low.graph.output] == NAMES
    batch = random_batch(model, rows=3)
    engine = OrtEngine(build(model).SerializeToString(), threads=1)
    assert engine.run(batch.inputs()).shape == (*batch.input_ids.shape, 2)
    assert engine.logits == ("tokens", 2)


def test_the_head_is_found_by_its_weights(tmp_path: Path) -> None:
    of = config("bert", "QuestionAnswering", id2label=None)
    weights = state(of)
    write(tmp_path, of | {"architectures": ["BertForMaskedLM"]}, weights)
    model = load_model(str(tmp_path))
    assert model.task.finds_spans
    assert any("the weights are those of QuestionAnswering" in x for x in model.remarks)


def test_what_no_head_is(tmp_path: Path) -> None:
    of = config("bert", "QuestionAnswering", id2label=None)
    three = write(tmp_path / "three", of | {"num_labels": 3}, state(of))
    assert "with 3 labels" in refused(three)
    weights = state(of)
    weights["classifier.weight"] = weights.pop("qa_outputs.weight")
    other = write(tmp_path / "other", of, weights)
    assert "no tensor 'qa_outputs.weight'" in refused(other)
