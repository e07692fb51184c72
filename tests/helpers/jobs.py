"""A tiny model with tokenizer and data, for whole runs of the command line."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch

from prumux.optimizer.cli.opt import main
from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded, batches, encode
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.tasks.regression import Regression
from prumux.optimizer.tasks.tokens import Tokens
from tests.helpers.checkpoints import config, state, write
from tests.helpers.datafiles import write as write_rows
from tests.helpers.factory import tiny_tokenizer

CONFIG = config(
    vocab_size=101,
    max_position_embeddings=40,
    hidden_size=24,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
)
MADE: dict[str, dict[str, bytes]] = {}
"""Files that were made before, by what they were made of: many tests ask for the same."""
SIZES = {"train": 300, "validation": 600, "test": 200}


def model_folder(
    folder: Path, of: dict[str, Any] = CONFIG, tokenizer: Any = None, on: Rows | None = None
) -> Path:
    """A Hugging Face folder of a random model with tokenizer, all classes about as likely.

    Args:
        folder: where to write it.
        of: its config.
        tokenizer: its tokenizer; a tiny one unless told.
        on: texts on which the classes are about as likely; random words unless told.
    """
    if tokenizer is not None or on is not None or folder.exists():
        return _new_model(folder, of, tokenizer or tiny_tokenizer(), on)
    about = json.dumps(of)
    if about not in MADE:
        _new_model(folder, of, tiny_tokenizer(), on)
        MADE[about] = _files(folder)
    return _copy(MADE[about], folder)


def _new_model(folder: Path, of: dict[str, Any], tokenizer: Any, on: Rows | None) -> Path:
    weights = state(of)
    write(folder, of, weights)
    tokenizer.save_pretrained(str(folder))
    given = load_model(str(folder))
    run = torch_run(given)
    rows = coded_by(given, rows_of(given, 200, 99) if on is None else on)
    logits = [run(b.inputs()) for b in batches(rows, 64)]
    flat = np.concatenate([x.reshape(-1, x.shape[-1]) for x in logits])
    weights["classifier.bias"] -= torch.as_tensor(np.median(flat, axis=0))
    return write(folder, of, weights)


def data_folder(folder: Path, model: Path, labelled: bool = True, pairs: bool = False) -> Path:
    """Texts labelled with the model's own answers, so that the dense score is 100 %."""
    given = sorted(_files(model).items()), SIZES, labelled, pairs
    about = hashlib.sha256(repr(given).encode()).hexdigest()
    if about not in MADE:
        with TemporaryDirectory() as made:
            MADE[about] = _files(_new_data(Path(made), model, labelled, pairs))
    return _copy(MADE[about], folder)


def _files(folder: Path) -> dict[str, bytes]:
    return {x.name: x.read_bytes() for x in folder.iterdir() if x.is_file()}


def _copy(files: dict[str, bytes], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def _new_data(folder: Path, model: Path, labelled: bool, pairs: bool) -> Path:
    given = load_model(str(model))
    token = isinstance(given.task, Tokens)
    for seed, (name, count) in enumerate(SIZES.items()):
        rows = rows_of(given, count, seed, pairs)
        columns: dict[str, list[Any]] = {"text": list(rows.text_a)}
        if rows.words is not None:
            columns = {"tokens": [list(x) for x in rows.words]}
        elif rows.text_b is not None:
            columns = {"text_a": list(rows.text_a), "text_b": list(rows.text_b)}
        if labelled:
            answers = predict(torch_run(given), coded_by(given, rows), given.task)
            key = "score" if isinstance(given.task, Regression) else "label"
            columns["tags" if token else key] = [np.asarray(x).tolist() for x in answers]
        write_rows(folder / f"{name}.jsonl", **columns)
    return folder


def rows_of(given: Model, count: int, seed: int, pairs: bool = False) -> Rows:
    """Unlabelled rows of the kind that the model takes."""
    first = texts(count, seed)
    if isinstance(given.task, Tokens):
        return Rows((), words=tuple(tuple(text.split()) for text in first))
    return Rows(tuple(first), tuple(texts(count, seed + 10)) if pairs else None)


def coded_by(given: Model, rows: Rows) -> Encoded:
    """Rows as the model takes them."""
    assert given.tokenizer is not None
    return encode(rows, given.tokenizer, given.encoder)


def texts(rows: int, seed: int) -> list[str]:
    """Random words."""
    return list(_texts(rows, seed))


@cache  # most tests ask for the same ones
def _texts(rows: int, seed: int) -> tuple[str, ...]:
    random = np.random.default_rng(seed)
    letters = "abcdefghijklmnopqrstuvwxyz"
    return tuple(
        " ".join(
            "".join(random.choice(list(letters), 3)) for _ in range(random.integers(2, 9))
        )
        for _ in range(rows)
    )


def interrupted_and_resumed(command: list[str]) -> None:
    """Run `prumux-opt`, stop it after its search, and go on."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("prumux.optimizer.run.run.package", interrupted)
        assert main(command) == 130
    assert main([*command, "--resume"]) == 0
