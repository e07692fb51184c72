"""Small checkpoints with Hugging Face names, made without transformers."""

from __future__ import annotations

import json
import pkgutil
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.hf_checkpoint import hf_source, read_config
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.model.weights import expected_shapes

_SIZES = {"vocab_size": 31, "max_position_embeddings": 20, "pad_token_id": 0}
_BERT = _SIZES | {
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 10,
    "type_vocab_size": 2,
}
_DISTIL = _SIZES | {"dim": 12, "n_layers": 2, "n_heads": 3, "hidden_dim": 10}
CONFIGS: dict[str, dict[str, Any]] = {
    "bert": _BERT,
    "roberta": _BERT | {"pad_token_id": 1, "type_vocab_size": 1},
    "xlm-roberta": _BERT | {"pad_token_id": 1, "type_vocab_size": 1},
    "camembert": _BERT | {"pad_token_id": 1, "type_vocab_size": 1},
    "distilbert": _DISTIL,
    "electra": _BERT | {"embedding_size": 6},
}


def config_of(family: str) -> dict[str, Any]:
    """A small config of a family: from here, or from its test in tests/model/families."""
    if family in CONFIGS:
        return CONFIGS[family]
    package = import_module("tests.model.families")
    for found in pkgutil.iter_modules(package.__path__):
        module = import_module(f"{package.__name__}.{found.name}")
        if getattr(module, "MODEL_TYPE", None) == family:
            tiny: dict[str, Any] = module.TINY
            return tiny
    raise LookupError(f"no test of tests/model/families has MODEL_TYPE = '{family}'")


def config(
    family: str = "bert", task: str = "SequenceClassification", **changes: Any
) -> dict[str, Any]:
    """What a `config.json` of this family holds; `changes` of None drop a key."""
    found = config_of(family) | {
        "model_type": family,
        "architectures": [f"XFor{task}"],
        "id2label": {"0": "bad", "1": "good"},
    }
    return {k: v for k, v in (found | changes).items() if v is not None}


def state(of: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Random weights under the names of a checkpoint."""
    family, encoder, task = read_config(of)
    random = torch.Generator().manual_seed(seed)
    parts: dict[str, dict[int, Tensor]] = {}
    for name, shape in expected_shapes(encoder).items():
        source = hf_source(family, encoder, name, spans=task.finds_spans)
        parts.setdefault(source.tensor, {})[source.index] = 0.2 * torch.randn(
            shape, generator=random
        )
    return {name: torch.cat([x[i] for i in sorted(x)]) for name, x in parts.items()}


def write(
    folder: Path, of: Mapping[str, Any], weights: Mapping[str, Tensor] | None = None
) -> Path:
    """A folder with `config.json` and `model.safetensors`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(of))
    save_file(dict(state(of) if weights is None else weights), folder / "model.safetensors")
    return folder


def refused(source: object) -> str:
    """The message with which a source is refused."""
    with pytest.raises(ModelError) as caught:
        load_model(str(source))
    text = str(caught.value)
    assert 1 <= len(text.splitlines()) <= 5
    assert caught.value.exit_code == 2
    return text


def same(a: Model, b: Model) -> bool:
    """Whether two models have the same weights, bit by bit."""
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(x, b.weights[k]) for k, x in a.weights.items()
    )
