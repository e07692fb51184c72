"""The graph takes the inputs that the tokenizer gives, of every family."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import prumux
from prumux.export.graph.graph import input_names
from prumux.export.triton.repository import Serving, engine_config
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import encode
from prumux.optimizer.model.checkpoint.token_types import fold_types
from prumux.optimizer.model.families.registry import families
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from tests.helpers import checkpoints
from tests.helpers.factory import random_batch, random_model, tiny_tokenizer
from tests.helpers.family_tokenizers import VOCAB, family_tokenizer
from tests.helpers.masking import logits, worst
from tests.helpers.readme import write_artifact

WITH_TYPES = ("bert", "electra", "nomic_bert")
NOT_READ = ("deberta-v2",)
"""Tokenizers that give token types to models which have none: DeBERTa-v3's does."""
PAIRS = [("a text", "another one"), ("b", "c d")]


def given(folder: Path, family: str, tokenizer: Any, **changes: Any) -> Model:
    """A checkpoint with a tokenizer, as it is read."""
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": 60}
    checkpoints.write(folder, checkpoints.config(family, **sizes | changes))
    tokenizer.save_pretrained(str(folder))
    return load_model(str(folder))


@pytest.mark.parametrize("family", sorted(families()))
def test_the_snippet_of_the_readme_runs_with_the_tokenizer_of_a_family(
    family: str, tmp_path: Path
) -> None:
    model = given(tmp_path / "given", family, family_tokenizer(family))
    folder = tmp_path / "made"
    write_artifact(model, folder)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    tokens = tokenizer([*PAIRS], padding=True, return_tensors="np")
    asked = {x.name for x in session.get_inputs()}
    without = {"token_type_ids"} if family in NOT_READ else set()
    assert asked == set(tokens.keys()) - without == set(input_names(model.encoder))
    assert ("token_type_ids" in asked) == (family in WITH_TYPES)
    found = session.run(None, {x: tokens[x] for x in asked})[0]
    module = AutoModelForSequenceClassification.from_pretrained(str(folder)).eval()
    with torch.no_grad():
        wanted = module(**{k: torch.as_tensor(x) for k, x in tokens.items()}).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(prumux.load(folder).predict_logits(PAIRS), wanted, atol=1e-4)
    assert ("token_type_ids" in engine_config_of(model)) == ("token_type_ids" in asked)


def engine_config_of(model: Model) -> str:
    return engine_config(model.encoder, "onnxruntime", Serving())


@pytest.mark.parametrize("family", ["bert", "electra"])
def test_a_tokenizer_without_token_types_gives_every_text_type_0(
    family: str, tmp_path: Path
) -> None:
    """As transformers does; it was type 1 for the second text of a pair."""
    model = given(tmp_path / "given", family, tiny_tokenizer())
    assert model.encoder.token_types == 0
    write_artifact(model, tmp_path / "made")
    found = prumux.load(tmp_path / "made").predict_logits(PAIRS)
    tokens = AutoTokenizer.from_pretrained(str(tmp_path / "given"))(
        PAIRS, padding=True, return_tensors="pt"
    )
    assert "token_type_ids" not in tokens
    config = checkpoints.config(family, vocab_size=VOCAB, max_position_embeddings=60)
    with torch.no_grad():
        module = theirs(family, config, checkpoints.state(config))
        wanted = module(**tokens).logits.numpy()
        other = module(
            **tokens, token_type_ids=(torch.cumsum(tokens["input_ids"] == 3, 1) > 0).long()
        ).logits.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.abs(other - wanted).max() > 1e-4, "token types would not show"


def theirs(family: str, config: dict[str, Any], state: dict[str, Any]) -> Any:
    """The model of transformers with these weights."""
    import transformers

    sizes = {k: x for k, x in config.items() if k not in ("model_type", "architectures")}
    made = transformers.AutoConfig.for_model(family, **sizes)
    auto: Any = AutoModelForSequenceClassification
    module = auto.from_config(made).eval()
    module.load_state_dict(state, strict=False)
    return module


def test_the_inputs_that_tokenizer_config_names_decide(tmp_path: Path) -> None:
    tokenizer = family_tokenizer("bert")
    tokenizer.model_input_names = ["input_ids", "attention_mask"]
    (tmp_path / "a").mkdir()
    model = given(tmp_path / "a", "bert", tokenizer)
    path = tmp_path / "a" / "tokenizer_config.json"
    if model.encoder.token_types:  # transformers may not save the names
        text = path.read_text().rstrip().removesuffix("}").rstrip()
        path.write_text(f'{text}, "model_input_names": ["input_ids", "attention_mask"]}}')
        model = load_model(str(tmp_path / "a"))
    assert model.encoder.token_types == 0
    write_artifact(model, tmp_path / "made")
    again = load_model(str(tmp_path / "made"))
    assert again.tokenizer is not None
    assert again.tokenizer.model_input_names == ["input_ids", "attention_mask"]


@pytest.mark.parametrize("family", ["bert", "roberta", "electra"])
def test_folding_changes_no_answer(family: Any) -> None:
    model = random_model(family, heads=(4, 3))
    batch = random_batch(model)
    zeros = replaced(batch, np.zeros_like(batch.input_ids))
    folded = fold_types(model)
    assert folded.encoder.token_types == 0
    folded.verify()
    assert worst(logits(folded, replaced(batch, None)), logits(model, zeros)) < 1e-5
    assert fold_types(folded) is folded


def replaced(batch: Any, types: Any) -> Any:
    return replace(batch, token_type_ids=types)


def test_a_digest_tells_models_apart_that_their_tokenizers_make(tmp_path: Path) -> None:
    one = given(tmp_path / "one", "bert", tiny_tokenizer())
    two = given(tmp_path / "two", "bert", family_tokenizer("bert"))
    assert one.source["digest"] != two.source["digest"]


def test_rows_of_a_folded_model_have_no_types(tmp_path: Path) -> None:
    model = given(tmp_path, "roberta", family_tokenizer("roberta"))
    assert encode(Rows(("a",), ("b",)), model.tokenizer, model.encoder).types is None  # type: ignore[arg-type]
