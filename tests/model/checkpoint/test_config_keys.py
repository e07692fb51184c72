"""Keys of other libraries stay in config.json, and a reranker's activation is computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

import prumux
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.artifact import from_config, to_config
from prumux.optimizer.model.checkpoint.config_keys import kept_keys
from prumux.optimizer.model.families.registry import families
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.tasks.regression import Regression
from tests.helpers.checkpoints import config, write
from tests.helpers.factory import tiny_tokenizer
from tests.helpers.readme import write_artifact

IDENTITY = "torch.nn.modules.linear.Identity"
SIGMOID = "torch.nn.modules.activation.Sigmoid"
FOREIGN: dict[str, Any] = {
    "sentence_transformers": {"activation_fn": IDENTITY, "version": "5.1.0"},
    "finetuning_task": "sst2",
    "task_specific_params": {"summary": {"a": [1, None]}},
    "label_names": ["bad", "good"],
}


def reranker(folder: Path, **changes: Any) -> Model:
    of = config(vocab_size=101, id2label={"0": "LABEL_0"}, max_position_embeddings=40)
    write(folder, of | changes)
    tiny_tokenizer().save_pretrained(str(folder))
    return load_model(str(folder))


def test_keys_of_other_libraries_are_kept(tmp_path: Path) -> None:
    model = reranker(tmp_path / "given", **FOREIGN)
    write_artifact(model, tmp_path / "made")
    made = json.loads((tmp_path / "made" / "config.json").read_text())
    assert made.items() >= FOREIGN.items()
    again = load_model(str(tmp_path / "made"))
    assert to_config(again).items() >= FOREIGN.items()
    found: Any = AutoConfig.from_pretrained(str(tmp_path / "made"))
    assert found.sentence_transformers == FOREIGN["sentence_transformers"]
    assert found.label_names == ["bad", "good"]


@pytest.mark.parametrize("family", sorted(families()))
def test_what_is_no_longer_true_is_not_kept(family: str) -> None:
    of = AutoConfig.for_model(family).to_dict()
    kept = kept_keys(of | {"auto_map": {"AutoModel": "code.py"}, "num_hidden_layers": 3})
    tokens = {"bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"}
    assert kept.keys() <= tokens | {"problem_type", "max_length"}


@pytest.mark.parametrize(
    "key", ["sentence_transformers", "sbert_ce_default_activation_function"]
)
@pytest.mark.parametrize("name", [IDENTITY, SIGMOID])
def test_a_rerankers_score_has_its_activation(key: str, name: str, tmp_path: Path) -> None:
    block = {"activation_fn": name} if key == "sentence_transformers" else name
    write_artifact(reranker(tmp_path / "given", **{key: block}), tmp_path / "made")
    texts = [("good film", "bad play"), ("a", "b")]
    predictor = prumux.load(tmp_path / "made")
    logits = np.asarray(predictor.predict_logits(texts))[:, 0]
    answers: Any = predictor.predict(texts)
    wanted = logits if name == IDENTITY else 1 / (1 + np.exp(-logits))
    np.testing.assert_allclose([x.score for x in answers], wanted, atol=1e-6)
    np.testing.assert_allclose(predictor.task.predictions(logits[:, None]), wanted, atol=1e-6)
    module: Any = AutoModelForSequenceClassification.from_pretrained(str(tmp_path / "made"))
    tokens = predictor.tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        raw = module.eval()(**tokens).logits[:, 0].numpy()
    np.testing.assert_allclose(raw, logits, atol=1e-4)


def test_the_loss_is_that_of_the_score() -> None:
    task = Regression(("score",), "sigmoid")
    loss, count = task.label_loss(torch.zeros(2, 1), torch.tensor([0.5, 1.0]))
    assert count == 2
    assert float(loss) == pytest.approx(0.125)


WRONG: list[Any] = ["torch.nn.modules.activation.Tanh", 5, ["a"], "os.system", ""]


@pytest.mark.parametrize("name", WRONG)
def test_other_activations_are_refused_by_name(name: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        reranker(tmp_path, sentence_transformers={"activation_fn": name})
    assert f"sentence_transformers.activation_fn is {name!r}" in str(caught.value)
    assert IDENTITY in str(caught.value)
    for block in ("text", [1]):
        with pytest.raises(ModelError, match=r"sentence_transformers\.activation_fn is"):
            reranker(tmp_path, sentence_transformers=block)


def test_classifiers_do_not_ask_for_it(tmp_path: Path) -> None:
    model = load_model(
        str(write(tmp_path, config(sentence_transformers={"activation_fn": 5})))
    )
    encoder, task = from_config(to_config(model))
    assert (encoder, task) == (model.encoder, model.task)
