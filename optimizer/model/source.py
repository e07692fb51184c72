"""Reads the MODEL argument: an artifact folder, a Hugging Face folder or hub id, `model.pt`.

No code from a file is ever executed. safetensors files are preferred, pickles are loaded with
`weights_only=True`, and tokenizers are loaded without remote code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.base.paths import hub_cure, local_path
from prumux.optimizer.base.store import owned

from .checkpoint.config_keys import kept_keys
from .checkpoint.missing_head import with_architecture
from .checkpoint.sentence_files import (
    MODULES,
    SentenceFiles,
    limit_tokens,
    pooled_by,
    read_sentence_files,
    with_sentence,
)
from .checkpoint.tensor_names import refuse_adapters
from .checkpoint.token_types import fold_types
from .checkpoint.tokenizer_files import read_tokenizer, with_tokenizer
from .checkpoint.weight_files import WEIGHT_FILES, find_weights, read_state
from .families.sentence import dense_name, shortened
from .folder import digest, read_json
from .hf_checkpoint import read_checkpoint, read_config
from .masks import Masks
from .model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DOWNLOADS = (
    *("*.json", "*.txt", "*.model", "model-*-of-*.safetensors", "pytorch_model-*.bin"),
    *("*_Dense/model.safetensors", "*_Dense/pytorch_model.bin", "0_*/model.safetensors"),
)
LOCAL = frozenset({".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".onnx"})
"""File suffixes. Hub ids have none of them."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_model(
    source: str, pooling: str | None = None, dimensions: int | None = None
) -> Model:
    """The model that `source` names, with its tokenizer.

    Args:
        source: a folder, a file or a hub id.
        pooling: turns an encoder without a head into an embedding model, see `pooled_by`.
        dimensions: number of leading entries of an embedding model's vectors to keep.

    Raises:
        ModelError: the model is missing, damaged, unsafe or unsupported.
    """
    model = _load(source, pooling)
    return model if dimensions is None else shortened_model(model, dimensions)


def _load(source: str, pooling: str | None) -> Model:
    try:
        path = local_path(source)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user
        raise ModelError(f"'{source[:80]}' cannot be a path: {error}"[:300]) from error
    if is_folder:
        return _from_folder(path, source, pooling)
    if is_file:
        return _from_file(path, source, pooling)
    if path.suffix in LOCAL or not HUB_ID.fullmatch(source):
        raise ModelError(
            f"no file or folder '{source}'\n"
            "give a Hugging Face folder, a hub id, an artifact folder or a model.pt"
        )
    return _from_folder(_download(source), source, pooling)


def _from_folder(folder: Path, name: str, pooling: str | None) -> Model:
    own = folder / "config.json"
    if own.is_file() and read_json(own).get("model_type") == "prumux":
        from .artifact import load_artifact

        _refuse_pooling(pooling, "it is a result of prumux-opt, which has its head")
        return load_artifact(folder)
    sentence = read_sentence_files(folder)
    if sentence is not None:
        _refuse_pooling(pooling, f"{MODULES} says how its states are pooled")
    elif pooling is not None:
        sentence = pooled_by(pooling, folder)
    inner = folder if sentence is None else sentence.transformer
    config = read_json(inner / "config.json")
    file, others = find_weights(inner)
    model = build(config, read_state(file), None, name, sentence)
    if others:
        model = _remarked(model, f"{file.name} was read, {', '.join(others[:3])} was not")
    # Only after the model: otherwise a fault of config.json is reported as a tokenizer's
    # fault.
    return _with_tokenizer(model, inner, sentence)


def _refuse_pooling(pooling: str | None, why: str) -> None:
    if pooling is not None:
        raise ModelError(f"--pooling {pooling:.40} is for encoders without a head: {why}")


def shortened_model(model: Model, dimensions: int) -> Model:
    """The embedding model with vectors cut to their first entries and normalised again.

    Raises:
        ModelError: the model returns no vectors, or the vectors are shorter.
    """
    e = model.encoder
    if e.sentence is None:
        raise ModelError(
            f"dimensions={dimensions} is for embedding models, this one does "
            f"{model.task.name}: leave --dimensions out"
        )
    if not 1 <= dimensions <= e.labels:
        raise ModelError(
            f"dimensions is {dimensions}, the model's vectors have {e.labels}\n"
            f"write, say, --dimensions {max(1, e.labels // 2)}"
        )
    if dimensions == e.labels:
        return model
    head = shortened(e.sentence, dimensions)
    cut = dense_name(len(head.steps) - 2)
    weights = {**model.weights, f"{cut}.weight": torch.eye(dimensions, e.labels)}
    encoder = replace(e, sentence=head, labels=dimensions)
    made = digest(weights, model.task, encoder)
    source = {**model.source, "digest": made}
    return replace(model, encoder=encoder, weights=weights, source=source)


def _from_file(path: Path, name: str, pooling: str | None) -> Model:
    found = read_state(path)
    config = found.pop("config", None)
    if config is None:
        if not (path.parent / "config.json").exists():
            raise ModelError(
                f"'{path.name}' holds weights only and no config.json lies beside it\n"
                f"copy the model's config.json (and tokenizer files) to {path.parent}/"
            )
        config = read_json(path.parent / "config.json")
    if not isinstance(config, Mapping):
        raise ModelError(f"'config' in '{path.name}' is a {type(config).__name__}, not a dict")
    sentence = None if pooling is None else pooled_by(pooling, path.parent)
    return _with_tokenizer(build(config, found, None, name, sentence), path.parent, sentence)


def _with_tokenizer(model: Model, folder: Path, sentence: SentenceFiles | None) -> Model:
    """The model with the tokenizer of a folder. A new digest is made if sizes changed."""
    tokenizer = read_tokenizer(folder)
    if tokenizer is not None and sentence is not None:
        limit_tokens(tokenizer, sentence)
    fitted = with_tokenizer(model, tokenizer)
    if fitted.encoder == model.encoder:
        return fitted
    made = digest(fitted.weights, fitted.task, fitted.encoder)
    return replace(fitted, source={**fitted.source, "digest": made})


def _remarked(model: Model, line: str) -> Model:
    return replace(model, remarks=(*model.remarks, line))


def build(
    config: Mapping[str, Any],
    found: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
    sentence: SentenceFiles | None = None,
) -> Model:
    """Build a `Model` from a config and a state dict with Hugging Face names."""
    found = {k: v for k, v in found.items() if not str(k).endswith("_extra_state")}
    wrong = [k for k, v in found.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong or not found:
        what = (
            f"'{wrong[0]}' is a {type(found[wrong[0]]).__name__}" if wrong else "it is empty"
        )
        raise ModelError(
            f"the file does not hold a state dict ({what})\n"
            "save it with torch.save(model.state_dict(), 'model.pt')"
        )
    refuse_adapters(found)
    if sentence is None:
        config, remarks = with_architecture(config, found)
    else:
        config, remarks = with_sentence(config, sentence), ()
        found |= sentence.weights
    family, encoder, task = read_config(config)
    weights, ignored = read_checkpoint(family, encoder, found, spans=task.finds_spans)
    if ignored:
        remarks = (*remarks, _ignored(ignored))
    model = Model(
        encoder=encoder,
        weights=weights,
        task=task,
        masks=Masks.full(encoder),
        tokenizer=tokenizer,
        remarks=remarks,
        kept_config=kept_keys(config),
    )
    model = fold_types(model) if encoder.token_types == 1 else model
    weights = owned(model.weights)
    source = {
        "name": Path(name).name,
        "model_type": str(config["model_type"]),
        "digest": digest(weights, task, model.encoder),
    }
    return replace(model, weights=weights, source=source)


def _ignored(names: Sequence[str]) -> str:
    """The remark about tensors that the architecture does not have."""
    more = f" and {len(names) - 3} more" if names[3:] else ""
    return (
        f"the architecture does not have {len(names)} of the checkpoint's tensors, ignored: "
        f"{', '.join(names[:3])}{more}"
    )


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*DOWNLOADS, *WEIGHT_FILES]))
    except Exception as error:  # any error of network, name or permission
        first = str(error).strip().split("\n")[0][:200]
        raise ModelError(
            f"no folder '{name}' here, and the hub could not give it: {first}\n"
            + hub_cure(error, "check the name, or give a local folder")
        ) from error
