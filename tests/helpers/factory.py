"""Small random models and batches. Weights are wide enough for logits to differ visibly."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Batch, Encoded
from prumux.optimizer.model.masks import Masks
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.sizes import Encoder, HeadKind, Layer, Multiplexing
from prumux.optimizer.model.weights import expected_shapes
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.task import Task
from prumux.optimizer.tasks.tokens import Tokens

Family = Literal["bert", "roberta", "distilbert", "electra"]
Kind = Literal["text-classification", "token-classification"]
TASKS: dict[Kind, type[Task]] = {
    "text-classification": Classification,
    "token-classification": Tokens,
}
HEADS: dict[Family, HeadKind] = {
    "bert": "tanh",
    "roberta": "tanh",
    "distilbert": "relu",
    "electra": "gelu",
}


def random_model(
    family: Family = "bert",
    heads: tuple[int, ...] = (12, 12, 12, 12),
    ffn: tuple[int, ...] | None = None,
    *,
    task: Kind = "text-classification",
    seed: int = 0,
    hidden: int = 48,
    head_dim: int = 4,
    labels: int = 2,
    **fields: Any,
) -> Model:
    """A dense model with the given widths per layer, 0 = no such block; weights of std 0.2.

    `fields` replace fields of its `Encoder`. The default FFN has 64 units in every layer.
    """
    encoder = Encoder(
        vocab=101,
        positions=40,
        token_types={"bert": 2, "roberta": 1, "distilbert": 0, "electra": 2}[family],
        embedding=hidden // 2 if family == "electra" else hidden,
        hidden=hidden,
        head_dim=head_dim,
        layers=tuple(map(Layer, heads, ffn or (64,) * len(heads))),
        labels=labels,
        head="linear" if task == "token-classification" else HEADS[family],
        norm_eps=1e-5 if family == "roberta" else 1e-12,
        pad_id=1 if family == "roberta" else 0,
        positions_from="padding" if family == "roberta" else "index",
        projected=family == "electra",
        pooling="all" if task == "token-classification" else "first",
        family=family,
    )
    encoder = replace(encoder, **fields)
    return Model(
        encoder=encoder,
        weights=random_weights(encoder, seed),
        task=TASKS[task](tuple(f"LABEL_{i}" for i in range(labels))),
        masks=Masks.full(encoder),
        source={"name": f"random-{family}", "model_type": family, "digest": f"seed-{seed}"},
    )


def multiplexed(model: Model, n: int = 2, **options: Any) -> Model:
    """The model with rows mixed by random keys and a random demultiplexer."""
    encoder = replace(model.encoder, mux=Multiplexing(n, **options))
    added = random_weights(encoder, seed=n)
    return replace(model, encoder=encoder, weights={**added, **model.weights})


def random_weights(encoder: Encoder, seed: int = 0) -> dict[str, Tensor]:
    """Normal weights of std 0.2, around 1 for LayerNorm's scale."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: 0.2 * torch.randn(shape, generator=generator)
        + (1.0 if name.endswith("norm.weight") else 0.0)
        for name, shape in expected_shapes(encoder).items()
    }


def overflowing(model: Model, factor: float = 3000) -> Model:
    """The model with FFN weights so large that its values are beyond fp16, as no weight is."""
    large = {
        k: x * factor for k, x in model.weights.items() if ".ffn." in k and "norm" not in k
    }
    return replace(model, weights={**model.weights, **large})


def random_batch(model: Model, rows: int = 5, length: int = 12, seed: int = 0) -> Batch:
    """Right-padded rows: the first is full, the second has one token."""
    rng = np.random.default_rng(seed)
    e = model.encoder
    lengths = rng.integers(1, length + 1, rows)
    lengths[:2] = [length, 1][: min(rows, 2)]
    mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
    ids = rng.integers(e.pad_id + 1, e.vocab, (rows, length))
    types = None
    if e.token_types:
        second = np.arange(length) >= lengths[:, None] // 2
        types = np.where((mask == 1) & second, e.token_types - 1, 0)
    return Batch(
        rows=np.arange(rows),
        input_ids=np.where(mask == 1, ids, e.pad_id),
        attention_mask=mask,
        token_type_ids=types,
        labels=None,
    )


def make_context(model: Model, *workload: Batch, **fields: Any) -> Context:
    """A context with these batches as the serving point, or one random batch."""
    batches = workload or (random_batch(model),)
    rows = batches[0]
    fit = Encoded(
        ids=Ragged.of(
            ids[mask == 1]
            for ids, mask in zip(rows.input_ids, rows.attention_mask, strict=True)
        ),
        types=None
        if rows.token_type_ids is None
        else Ragged.of(
            types[mask == 1]
            for types, mask in zip(rows.token_type_ids, rows.attention_mask, strict=True)
        ),
        labels=None,
        pad_id=model.encoder.pad_id,
    )
    return Context(**{"fit": fit, "workload": batches, "dense": model, **fields})


def tiny_tokenizer(vocab: int = 101, pad_id: int = 0) -> Any:
    """A lower-casing WordPiece tokenizer that has tokens for any word of a-z.

    Ids go from 0 to `vocab` - 1; the first four are special ones, padding at `pad_id`.
    """
    from transformers import PreTrainedTokenizerFast  # most users of this module need none

    specials = ["[UNK]", "[CLS]", "[SEP]"]
    specials.insert(pad_id, "[PAD]")
    letters = [mark + chr(code) for mark in ("", "##") for code in range(97, 123)]
    words = ["good", "bad", "film", "play", "##ing", "##er"]
    names = (specials + words + letters + [f"word{i}" for i in range(vocab)])[:vocab]
    ids = {name: i for i, name in enumerate(names)}
    backend = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    make: Any = PreTrainedTokenizerFast  # untyped
    return make(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]",
    )  # fmt: skip
