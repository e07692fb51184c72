"""Tiny embedding models in folders of sentence-transformers, and data for them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from prumux.optimizer.data.predict import predict, torch_run
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.model.checkpoint.sentence_files import FLAGS
from prumux.optimizer.model.source import load_model
from tests.helpers.checkpoints import config_of, state, write
from tests.helpers.datafiles import write as write_rows
from tests.helpers.factory import tiny_tokenizer
from tests.helpers.jobs import coded_by, texts

SIZES = {
    "vocab_size": 101,
    "max_position_embeddings": 40,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
POOL_CONFIGS: dict[str, dict[str, Any]] = {
    name: {"word_embedding_dimension": 24, **{f: f == flag for f in FLAGS.values()}}
    for name, flag in FLAGS.items()
}
"""The pooling config of each single pool."""


def encoder_folder(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """A plain encoder without a head, as `AutoModel` saves it, with its tokenizer."""
    found = config_of(family) | {"model_type": family}
    sized = SIZES if "hidden_size" in found else {}
    of = found | sized | {"architectures": ["XModel"]} | changes
    whole = state(of | {"architectures": ["XForSequenceClassification"]})
    prefix = next(iter(whole)).split(".")[0] + "."
    weights = {k.removeprefix(prefix): v for k, v in whole.items() if k.startswith(prefix)}
    for name, x in weights.items():  # norms as after training: else all vectors are alike
        if name.endswith("LayerNorm.weight"):
            x.fill_(1.0)
        elif name.endswith("LayerNorm.bias"):
            x.zero_()
    write(folder, of, weights)
    tiny_tokenizer().save_pretrained(str(folder))
    return folder


def sentence_folder(
    folder: Path,
    pooling: Mapping[str, Any] | None = None,
    modules: Sequence[str] = ("Normalize",),
    settings: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A folder of sentence-transformers.

    Args:
        folder: where to write it.
        pooling: of its `1_Pooling/config.json`; mean unless told.
        modules: after the pooling; `Dense` maps to 16, then 15, ... dimensions.
        settings: of its `config_sentence_transformers.json`.
        changes: of its `config.json`.
    """
    encoder_folder(folder, **changes)
    names = ["Transformer", "Pooling", *modules]
    width, random = 24, torch.Generator().manual_seed(1)
    pools = POOL_CONFIGS["mean"] if pooling is None else dict(pooling)
    many = pools.get("pooling_mode", [x for x in FLAGS.values() if pools.get(x)])
    width *= max(1, len(many)) if isinstance(many, list) else 1
    _json(folder / "1_Pooling" / "config.json", pools)
    for i, kind in enumerate(modules, 2):
        inner = folder / f"{i}_{kind}"
        inner.mkdir()
        if kind == "Dense":
            out = 18 - i
            weights = {
                "linear.weight": 0.3 * torch.randn(out, width, generator=random),
                "linear.bias": 0.3 * torch.randn(out, generator=random),
            }
            save_file(weights, inner / "model.safetensors")
            about: dict[str, Any] = {"in_features": width, "out_features": out, "bias": True}
            about |= {"activation_function": "torch.nn.modules.activation.Tanh"}
            _json(inner / "config.json", about)
            width = out
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{x}" if i else "",
            "type": f"sentence_transformers.models.{x}",
        }
        for i, x in enumerate(names)
    ]
    _json(folder / "modules.json", listed)
    _json(folder / "sentence_bert_config.json", {"max_seq_length": 30, "do_lower_case": False})
    _json(folder / "config_sentence_transformers.json", dict(settings or {}))
    return folder


def vectors_of(folder: Path, some: Sequence[str]) -> Any:
    """The torch module's vectors."""
    given = load_model(str(folder))
    return predict(torch_run(given), coded_by(given, Rows(tuple(some))), given.task)


def scored_pairs(folder: Path, model: Path, rows: int = 600) -> Path:
    """Pairs whose scores are the model's own cosines, with noise."""
    for seed, name in enumerate(("train", "validation", "test")):
        a, b = texts(rows, seed), texts(rows, seed + 10)
        random = np.random.default_rng(seed)
        both = [vectors_of(model, x) for x in (a, b)]
        cosine = (both[0] * both[1]).sum(-1)
        noise = 0.3 * cosine.std() * random.normal(size=rows)
        score = [float(x) for x in cosine + noise]
        write_rows(folder / f"{name}.jsonl", text_a=a, text_b=b, score=score)
    return folder


def retrieval_folder(folder: Path, model: Path, splits: Sequence[str] = ("dev",)) -> Path:
    """Queries whose judged documents are among the model's own nearest ones."""
    documents, each = texts(300, 5), 150
    write_rows(
        folder / "corpus.jsonl",
        _id=[f"d{i}" for i in range(300)],
        title=["" for _ in documents],
        text=documents,
    )
    queries = texts(each * len(splits), 6)
    write_rows(
        folder / "queries.jsonl", _id=[f"q{i}" for i in range(len(queries))], text=queries
    )
    asked = load_model(str(model)).task.prompted(queries, "query")
    found = vectors_of(model, asked) @ vectors_of(model, documents).T
    best = np.argsort(-found, axis=1)
    random = np.random.default_rng(0)
    for number, split in enumerate(splits):
        rows = range(number * each, (number + 1) * each)
        drawn = [
            (q, int(best[q, d])) for q in rows for d in random.choice(8, 2, replace=False)
        ]
        columns: dict[str, list[Any]] = {
            "query-id": [f"q{q}" for q, _ in drawn],
            "corpus-id": [f"d{d}" for _, d in drawn],
            "score": [1 + i % 2 for i in range(len(drawn))],
        }
        write_rows(folder / "qrels" / f"{split}.tsv", **columns)
    return folder


def _json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
