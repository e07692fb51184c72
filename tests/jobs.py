"""A tiny model with tokenizer and data, for whole runs of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prumux.optimizer.data import Rows
from prumux.optimizer.encode import Encoded, batches, encode
from prumux.optimizer.evaluate import predict, torch_run
from prumux.optimizer.ir import Model
from prumux.optimizer.source import load_model
from tests.checkpoints import config, state, write
from tests.datafiles import write as write_rows
from tests.factory import tiny_tokenizer

CONFIG = config(
    vocab_size=101,
    max_position_embeddings=40,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
)
SIZES = {"train": 300, "validation": 600, "test": 200}


def model_folder(folder: Path) -> Path:
    """A Hugging Face folder of a random BERT with a tokenizer."""
    write(folder, CONFIG)
    tiny_tokenizer().save_pretrained(str(folder))
    given = load_model(str(folder))
    coded = coded_by(given, texts(200, 99))
    run = torch_run(given)
    logits = np.concatenate([run(batch.inputs()) for batch in batches(coded, 64)])
    weights = state(CONFIG)
    # Else a random model gives nearly all texts the same label.
    weights["classifier.bias"] -= torch.as_tensor(np.median(logits, axis=0))
    write(folder, CONFIG, weights)
    return folder


def coded_by(given: Model, found: list[str]) -> Encoded:
    """Texts as the model takes them."""
    assert given.tokenizer is not None
    return encode(Rows(tuple(found)), given.tokenizer, given.encoder, given.task)


def texts(rows: int, seed: int) -> list[str]:
    """Random words."""
    random = np.random.default_rng(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return [
        " ".join(
            "".join(random.choice(list(letters), 3)) for _ in range(random.integers(2, 9))
        )
        for _ in range(rows)
    ]


def data_folder(folder: Path, model: Path, labelled: bool = True) -> Path:
    """Texts labelled with the model's own answers, so that the dense score is 100 %."""
    given = load_model(str(model))
    for seed, (name, rows) in enumerate(SIZES.items()):
        found = texts(rows, seed)
        columns: dict[str, list[Any]] = {"text": list(found)}
        if labelled:
            labels = predict(torch_run(given), coded_by(given, found), given.task)
            columns["label"] = [int(x) for x in np.asarray(labels)]
        write_rows(folder / f"{name}.jsonl", **columns)
    return folder
