"""Tiny models that answer questions, and questions in SQuAD's format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import encode
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.tasks.squad import from_numbers
from tests.helpers.checkpoints import config, write
from tests.helpers.factory import tiny_tokenizer
from tests.helpers.jobs import texts

NONE: dict[str, Any] = {"text": [], "answer_start": []}
SIZES = {"train": 160, "validation": 300, "test": 60}


def model_folder(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """A Hugging Face folder of a random model with a tokenizer."""
    sizes: dict[str, Any] = {"vocab_size": 101, "max_position_embeddings": 40}
    if family == "bert":
        sizes |= {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 64}
        sizes |= {"num_hidden_layers": 3}
    of = config(family, "QuestionAnswering", id2label=None, **(sizes | changes))
    write(folder, of)
    tiny_tokenizer(pad_id=of.get("pad_token_id", 0)).save_pretrained(str(folder))
    return folder


def questions(count: int, seed: int, stride: int | None = 0) -> Rows:
    """Random questions; some contexts need several windows of 40 tokens."""
    random = np.random.default_rng(seed)
    words = " ".join(texts(200, seed + 50)).split()
    contexts = [" ".join(random.choice(words, random.integers(3, 20))) for _ in range(count)]
    short = [f"{x.split()[0]} {i % 10}" for i, x in enumerate(texts(count, seed))]
    return Rows(tuple(short), tuple(contexts), stride=stride)


def answered(given: Model, rows: Rows) -> list[dict[str, Any]]:
    """The model's own answers, as SQuAD writes them."""
    assert given.tokenizer is not None
    assert rows.text_b is not None
    coded = encode(rows, given.tokenizer, given.encoder)
    found = [from_numbers(x)[0] for x in predict(torch_run(given), coded, given.task)]
    pairs = zip(found, rows.text_b, strict=True)
    return [{"text": [c[x.start : x.end]], "answer_start": [x.start]} for x, c in pairs]


def data_folder(folder: Path, model: Path, lacking: int = 0, labelled: bool = True) -> Path:
    """Questions with the model's own answers, so that its scores are 100 %.

    Args:
        folder: is made.
        model: the folder of the model.
        lacking: every so many-th question has no answer; 0 = all have.
        labelled: whether the files say the answers.
    """
    given = load_model(str(model))
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (name, count) in enumerate(SIZES.items()):
        rows = questions(count, 10 * seed)
        assert rows.text_b is not None
        lines = []
        for i, answers in enumerate(answered(given, rows)):
            none = lacking and i % lacking == 0
            line: dict[str, Any] = {"id": f"{name}{i}", "title": "x"}
            line |= {"question": rows.text_a[i], "context": rows.text_b[i]}
            lines.append(
                json.dumps(line | ({"answers": NONE if none else answers} if labelled else {}))
            )
        (folder / f"{name}.jsonl").write_text("\n".join(lines))
    return folder
