"""Whole runs on tiny models of the families that have no trained checkpoint here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

import prumux
from prumux.optimizer.cli.opt import main
from tests.helpers import jobs
from tests.helpers.checkpoints import config, config_of
from tests.helpers.family_tokenizers import VOCAB, family_tokenizer

pytestmark = pytest.mark.slow
FAMILIES = ("deberta-v2", "modernbert", "albert", "nomic_bert", "gte", "eurobert")
SPACE = "pool-early,prune{sparsity=0.1|0.3|0.6 of=macs},slice,reconstruct"
TOKENS = "prune{sparsity=0.1|0.3 of=macs},slice,reconstruct"


def job(folder: Path, family: str, task: str) -> list[str]:
    sizes = {"vocab_size": VOCAB, "max_position_embeddings": 64}
    of = config(family, task, **config_of(family) | sizes)
    model = jobs.model_folder(folder / "model", of, family_tokenizer(family))
    return [str(model), "--data", str(jobs.data_folder(folder / "data", model))]


@pytest.mark.parametrize("family", FAMILIES)
def test_texts(family: str, tmp_path: Path) -> None:
    given, out = job(tmp_path, family, "SequenceClassification"), tmp_path / "out"
    assert main([*given, "--budget", "20%", "--passes", SPACE, "--out", str(out), "-q"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["met"]
    assert report["source"]["model_type"] == family
    texts = jobs.texts(20, seed=5)
    wanted = prumux.load(out).predict_logits(texts)
    tokens = AutoTokenizer.from_pretrained(str(out))(texts, padding=True, return_tensors="np")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    found = session.run(None, {x.name: tokens[x.name] for x in session.get_inputs()})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    module = AutoModelForSequenceClassification.from_pretrained(str(out)).eval()
    with torch.no_grad():
        logits = module(**{k: torch.as_tensor(x) for k, x in tokens.items()}).logits
    if report["dropped"] is None:
        np.testing.assert_allclose(logits.numpy(), wanted, atol=1e-4)


@pytest.mark.parametrize("family", ["deberta-v2", "modernbert"])
def test_words(family: str, tmp_path: Path) -> None:
    given, out = job(tmp_path, family, "TokenClassification"), tmp_path / "out"
    assert main([*given, "--budget", "8%", "--passes", TOKENS, "--out", str(out), "-q"]) == 0
    words = [x.split() for x in jobs.texts(6, seed=5)]
    answers: Any = prumux.load(out).predict(words)
    assert [len(x) for x in answers] == [len(x) for x in words]
    AutoModelForTokenClassification.from_pretrained(str(out))
