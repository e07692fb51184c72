"""Seeded models: six families, dense, pruned, mixed, and the token task.

Weights and masks come from `RandomState`, whose numbers never change, under the names that
Hugging Face gives them: nothing of prumux takes part.
"""

from __future__ import annotations

import json
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from . import adapter

LENGTH = 12
HIDDEN, HEADS, FFN, LAYERS = 32, 4, 48, 4
_SIZES = {"vocab_size": 53, "max_position_embeddings": 20}
_BERT = _SIZES | {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": FFN,
    "pad_token_id": 0,
    "type_vocab_size": 2,
}
_ROBERTA = _BERT | {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _ROBERTA,
    "xlm-roberta": _ROBERTA | {"hidden_act": "gelu_new", "layer_norm_eps": 1e-6},
    "camembert": _ROBERTA | {"hidden_act": "silu", "vocab_size": 47},
    "distilbert": _SIZES
    | {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": FFN}
    | {"pad_token_id": 0, "activation": "relu"},
    "electra": _BERT | {"embedding_size": 20},
}
CUTS: tuple[tuple[tuple[tuple[int, ...], ...], tuple[bool, ...]], ...] = (
    (((1, 0, 1, 1), (0, 0, 0, 0), (0, 1, 1, 0), (1, 1, 1, 0)), (True, True, False, True)),
    (((0, 0, 0, 0), (1, 1, 0, 1), (0, 1, 1, 0), (0, 0, 0, 0)), (False, True, True, True)),
)
"""Which heads stay, and which FFNs: whole branches, layers and the last attention are gone."""


@dataclass(frozen=True)
class Variant:
    """What becomes of a dense model."""

    task: str = "text"
    cut: bool = False
    passes: str = ""


VARIANTS: dict[str, Variant] = {
    "dense": Variant(),
    "early": Variant(passes="pool-early"),
    "pruned": Variant(cut=True),
    "pruned-early": Variant(cut=True, passes="pool-early"),
    "mixed": Variant(passes="mux{n=2}"),
    "pruned-mixed-late": Variant(cut=True, passes="pool-early,mux{n=2 at=2}"),
    "token": Variant("token"),
    "token-pruned": Variant("token", cut=True),
    "token-mixed": Variant("token", passes="mux{n=2}"),
    "token-pruned-mixed-late": Variant("token", cut=True, passes="mux{n=2 at=2}"),
}
QUICK = "pool-early,prune{sparsity=0.5 of=macs},slice,reconstruct"
PASSES: tuple[tuple[str, str, str], ...] = (
    *((family, "text", QUICK) for family in CONFIGS),
    ("bert", "token", "prune{sparsity=0.5 of=macs},slice,reconstruct"),
    ("bert", "text", "prune{sparsity=0.4},slice"),
    ("bert", "text", "prune{sparsity=0.4 by=second-order},slice"),
    ("bert", "text", "prune-heads{ratio=0.5},prune-ffn{ratio=0.4 scope=layer},slice"),
    ("roberta", "text", "prune-layers{attention=1 ffn=2},slice"),
    ("electra", "text", "prune-hidden{keep=20},slice"),
    ("bert", "text", "prune-ffn{ratio=0.5},align{multiple=8},slice"),
    ("bert", "text", "prune{sparsity=0.4},slice,distill{epochs=2}"),
    ("distilbert", "token", "prune{sparsity=0.4},slice,distill{epochs=2}"),
    ("bert", "text", "learn-masks{sparsity=0.4 epochs=3},slice"),
    ("bert", "text", "mux{n=2 at=1},warm-up{epochs=2}"),
    ("bert", "text", "mux{n=2 units=apart}"),
    ("roberta", "text", "mux{n=3 variant=orthogonal demux=2}"),
    ("distilbert", "text", "mux{n=2 at=1 variant=fixed demux=0},prune-heads{ratio=0.5},slice"),
)
"""Family, task, pipeline: what passes choose and make, on the dense model."""


@cache
def made(family: str, variant: str) -> adapter.Compiled:
    """A model of a family, as a variant has it."""
    how = VARIANTS[variant]
    model = dense(family, how.task)
    if how.cut:
        heads, ffn = CUTS[list(CONFIGS).index(family) % 2]
        random = _random(family, "masks")
        kept = tuple(alive & (random.uniform(size=FFN) < 0.6) for alive in ffn)
        hidden = np.ones(HIDDEN, dtype=bool)
        hidden[random.permutation(HIDDEN)[:5]] = False
        model = adapter.passed(
            adapter.pruned(model, heads, kept, hidden), "slice", rows(family)
        )
    if how.passes:
        model = adapter.passed(model, how.passes, rows(family))
    return adapter.changed(model, lambda name, x: _stirred(family, name, x))


def _stirred(family: str, name: str, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of mixing and unmixing as well every weight counts, and none is 0 or 1 as at first."""
    if not name.startswith(("mux.", "demux.")):
        return x
    noise = _random(family, name).standard_normal(x.shape)
    return (x + 0.2 * noise).astype(np.float32)


@cache
def dense(family: str, task: str) -> adapter.Compiled:
    """The model of a family as prumux reads it from a Hugging Face folder."""
    with tempfile.TemporaryDirectory() as folder:
        return adapter.read(folder_of(Path(folder), family, task))


def folder_of(folder: Path, family: str, task: str) -> Path:
    """A Hugging Face folder with seeded weights."""
    labels = ("low", "middle", "high") if task == "text" else ("O", "B-X", "I-X", "B-Y")
    auto: Any = AutoModelForTokenClassification
    if task == "text":
        auto = AutoModelForSequenceClassification
    names = dict(enumerate(labels))
    config = AutoConfig.for_model(family, **CONFIGS[family], id2label=names)
    module = auto.from_config(config)
    config.architectures = [type(module).__name__]
    tensors = {
        name: _seeded(f"{family} {task} {name}", tuple(x.shape))
        for name, x in module.state_dict().items()
    }
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def _seeded(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Normal of std 0.2, around 1 for a LayerNorm's scale."""
    x = 0.2 * _random(name).standard_normal(shape)
    one = name.endswith("norm.weight") or name.endswith("LayerNorm.weight")
    return torch.as_tensor((x + one).astype(np.float32))


@cache
def rows(family: str) -> dict[str, NDArray[Any]]:
    """Six rows of unequal lengths, padded on the right, as numpy inputs."""
    config, random = CONFIGS[family], _random(family, "rows")
    pad = config["pad_token_id"]
    lengths = np.array([LENGTH, 1, 7, 5, 9, 3])
    mask = (np.arange(LENGTH) < lengths[:, None]).astype(np.int64)
    ids = random.randint(pad + 1, config["vocab_size"], mask.shape)
    second = (np.arange(LENGTH) >= lengths[:, None] // 2) & (mask == 1)
    types = np.where(second, max(0, config.get("type_vocab_size", 0) - 1), 0)
    return {
        "input_ids": np.where(mask == 1, ids, pad).astype(np.int64),
        "attention_mask": mask,
        "token_type_ids": types.astype(np.int64),
    }


def counted(logits: NDArray[Any], given: adapter.Arrays) -> NDArray[np.float32]:
    """The logits that count: of token tasks those of real positions."""
    found = logits if logits.ndim == 2 else logits[given["attention_mask"] == 1]
    return np.asarray(found, dtype=np.float32)


def _random(*names: str) -> np.random.RandomState:
    return np.random.RandomState(zlib.crc32(" ".join(names).encode()))
