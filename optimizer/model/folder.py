"""Files of a model folder: JSON and tokenizer; and the digest of a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.tasks.task import Task

from .sizes import Encoder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def digest(weights: Mapping[str, Tensor], *about: Task | Encoder) -> str:
    """SHA-256 over names, shapes and bytes of the weights, and what else makes the model."""
    sha = hashlib.sha256(repr(about).encode())
    for name in sorted(weights):
        tensor = weights[name].contiguous()
        sha.update(f"{name}{tuple(tensor.shape)}".encode())
        sha.update(tensor.numpy().tobytes())
    return sha.hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: missing, unreadable or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ModelError(
            f"'{path.parent}' is not a model folder: it has no {path.name}\n"
            "give a folder written by save_pretrained() or by prumux-opt"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, None if no tokenizer file is there. Runs no remote code.

    Raises:
        ModelError: tokenizer files are there but cannot be used.
    """
    names = ("tokenizer.json", "vocab.txt", "vocab.json", "sentencepiece.bpe.model")
    if not any((folder / name).exists() for name in names):
        return None
    from transformers import AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # any fault of a damaged or hostile tokenizer file
        first = str(error).strip().split("\n")[0][:200]
        raise ModelError(f"the tokenizer in '{folder}' cannot be loaded: {first}") from error
    if not tokenizer.is_fast:
        raise ModelError(f"the tokenizer in '{folder}' has no fast version (tokenizer.json)")
    result: PreTrainedTokenizerBase = tokenizer
    return result
