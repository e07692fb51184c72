"""Wrote `tests/data/0.1.0`, with 0.1.0: `python -m tests.golden.keep FOLDER`.

A later version cannot write these files again: they show that it reads what 0.1.0 wrote.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import prumux
from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.predict import torch_run
from prumux.optimizer.data.tokenize import batches
from prumux.optimizer.model.source import load_model
from prumux.optimizer.timing import interleave as measure
from tests.helpers import jobs
from tests.helpers.checkpoints import config, state, write
from tests.helpers.factory import tiny_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "max_position_embeddings": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 32,
}
DISTIL_SIZES: dict[str, Any] = {
    "vocab_size": 101,
    "max_position_embeddings": 40,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 32,
}
TAGS = {"0": "O", "1": "B-X", "2": "I-X"}
ARTIFACTS: dict[str, tuple[dict[str, Any], str]] = {
    "pruned-bert": (
        config(**SIZES),
        "pool-early,prune{sparsity=0.3},slice,prune-hidden{keep=18},slice,reconstruct",
    ),
    "mixed-roberta": (
        config("roberta", **SIZES),
        "prune-heads{ratio=0.3},slice,mux{n=2 at=1},warm-up{epochs=1}",
    ),
    "tokens-distilbert": (
        config("distilbert", "TokenClassification", id2label=TAGS, **DISTIL_SIZES),
        "prune-layers{attention=1 ffn=1},prune-ffn{ratio=0.3},slice",
    ),
}
"""Model and pipeline of each artifact."""
KEPT = ("config.json", "model.safetensors", "model.onnx", "pipeline.txt", "report.json")
INTERRUPTED = "prune{sparsity=0.3|0.5},slice"
TARGET = "onnx{fusion=none}"


def keep(folder: Path) -> None:
    """Write the model and data, the artifacts and the interrupted run."""
    with patch.dict(jobs.SIZES, {"train": 120, "validation": 240, "test": 60}):
        given = folder / "given"
        model = _model(given / "model", config(**SIZES))
        jobs.data_folder(given / "data", model)
        for name, (of, pipeline) in ARTIFACTS.items():
            _artifact(folder / name, of, pipeline)
    _interrupted(folder)


def _artifact(folder: Path, of: dict[str, Any], pipeline: str) -> None:
    scratch = folder.with_name(f"{folder.name}-scratch")
    model = _model(scratch / "model", of)
    data = jobs.data_folder(scratch / "data", model)
    command = [str(model), "--data", str(data), "--passes", pipeline, "--target", TARGET]
    with patch("prumux.optimizer.run.packaging._slower", lambda *_: False):
        assert main([*command, "--out", str(scratch / "out"), "-q"]) == 0
    folder.mkdir(parents=True)
    for path in (scratch / "out").iterdir():
        if path.name in KEPT or "token" in path.name:
            shutil.copyfile(path, folder / path.name)
    shutil.rmtree(scratch)
    _expected(folder)


def _model(folder: Path, of: dict[str, Any]) -> Path:
    """A random model with tokenizer that gives each class to some texts."""
    weights = state(of)
    write(folder, of, weights)
    tiny_tokenizer(pad_id=of["pad_token_id"]).save_pretrained(str(folder))
    model = load_model(str(folder))
    coded = jobs.coded_by(model, jobs.rows_of(model, 200, 99))
    logits = [torch_run(model)(x.inputs()) for x in batches(coded, 64)]
    flat = np.concatenate([x.reshape(-1, x.shape[-1]) for x in logits])
    bias = next(x for x in ("classifier.bias", "classifier.out_proj.bias") if x in weights)
    weights[bias] -= torch.as_tensor(np.median(flat, axis=0))
    return write(folder, of, weights)


def _expected(folder: Path) -> None:
    """Inputs with torch's logits, and texts with the predictor's answers."""
    model = load_model(str(folder))
    token = model.task.kind == "token-classification"
    random = np.random.RandomState(0)
    lengths = np.array([10, 1, 4, 7])
    mask = (np.arange(10) < lengths[:, None]).astype(np.int64)
    ids = random.randint(4, 101, mask.shape)
    inputs: dict[str, Any] = {
        "input_ids": np.where(mask == 1, ids, model.encoder.pad_id),
        "attention_mask": mask,
    }
    if model.encoder.token_types:
        inputs["token_type_ids"] = np.zeros_like(mask)
    texts = jobs.texts(5, 7)
    given: Any = [x.split() for x in texts] if token else texts
    predictor = prumux.load(folder)
    logits = predictor.predict_logits(given)
    answers: Any = predictor.predict(given)
    rows = answers if token else [answers]
    labels = [[x.label for x in row] for row in rows]
    np.savez_compressed(
        folder / "expected.npz",
        **inputs,
        logits=torch_run(model)(inputs),
        texts=np.array(json.dumps(texts)),
        labels=np.array(json.dumps(labels if token else labels[0])),
        predicted=np.concatenate([np.atleast_2d(x) for x in logits]),
    )


def _interrupted(folder: Path) -> None:
    """A search that ended before its winner was exported."""
    given, out = folder / "given", folder / "interrupted"
    command = [str(given / "model"), "--data", str(given / "data"), "--out", str(out)]
    command += ["--passes", INTERRUPTED, "--budget", "30%", "--target", TARGET, "-q"]

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with patch("prumux.optimizer.run.packaging.ship", interrupted):
        assert main(command) == 130
    assert (out / ".resume" / "run.json").exists()


if __name__ == "__main__":
    measure.SETTLE_CHECKS, measure.LEAST_MS = 0, 0.0
    keep(Path(sys.argv[1]))
