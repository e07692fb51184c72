"""Reads the MODEL argument: an artifact folder, a Hugging Face folder or hub id, `model.pt`.

Nothing in a file is ever executed: safetensors first, `weights_only=True` for pickles, no
remote code for tokenizers.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.base.paths import hub_cure, local_path
from prumux.optimizer.base.store import owned

from .folder import digest, read_json, read_tokenizer
from .hf_checkpoint import read_config, read_weights
from .masks import Masks
from .model import Model

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
DOWNLOADS = ("*.json", "*.txt", "*.model", "model-*-of-*.safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model", "weights")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def load_model(source: str) -> Model:
    """The model that `source` names, with its tokenizer.

    Raises:
        ModelError: not found, damaged, unsafe or unsupported.
    """
    try:
        path = local_path(source)
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # a name too long, an unknown ~user
        raise ModelError(f"'{source[:80]}' cannot be a path: {error}"[:300]) from error
    if is_folder:
        return _from_folder(path, source)
    if is_file:
        return _from_file(path, source)
    looks_local = path.suffix in {".pt", ".pth", ".bin", ".safetensors", ".onnx"}
    if looks_local or not HUB_ID.fullmatch(source):
        raise ModelError(
            f"no file or folder '{source}'\n"
            "give a Hugging Face folder, a hub id, an artifact folder or a model.pt"
        )
    return _from_folder(_download(source), source)


def _from_folder(folder: Path, name: str) -> Model:
    config = read_json(folder / "config.json")
    if config.get("model_type") == "prumux":
        from .artifact import load_artifact

        return load_artifact(folder)
    for file in WEIGHT_FILES:
        if (folder / file).exists():
            model = build(config, _tensors(folder / file), None, name)
            # After the model: a fault of its config would be called one of the tokenizer.
            return replace(model, tokenizer=read_tokenizer(folder))
    raise ModelError(
        f"'{folder}' has a config.json but no weights\n"
        f"expected one of: {', '.join(WEIGHT_FILES)}"
    )


def _from_file(path: Path, name: str) -> Model:
    found = _tensors(path)
    config = found.pop("config", None)
    for key in WRAPPERS:
        if isinstance(found.get(key), Mapping):
            found = dict(found[key])
            break
    if config is None:
        if not (path.parent / "config.json").exists():
            raise ModelError(
                f"'{path.name}' holds weights only and no config.json lies beside it\n"
                f"copy the model's config.json (and tokenizer files) to {path.parent}/"
            )
        config = read_json(path.parent / "config.json")
    if not isinstance(config, Mapping):
        raise ModelError(f"'config' in '{path.name}' is a {type(config).__name__}, not a dict")
    model = build(config, found, None, name)
    return replace(model, tokenizer=read_tokenizer(path.parent))


def build(
    config: Mapping[str, Any],
    found: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None,
    name: str,
) -> Model:
    """A `Model` out of a config and a state dict with Hugging Face names."""
    wrong = [k for k, v in found.items() if not (isinstance(k, str) and isinstance(v, Tensor))]
    if wrong or not found:
        what = (
            f"'{wrong[0]}' is a {type(found[wrong[0]]).__name__}" if wrong else "it is empty"
        )
        raise ModelError(
            f"the file does not hold a state dict ({what})\n"
            "save it with torch.save(model.state_dict(), 'model.pt')"
        )
    family, encoder, task = read_config(config)
    weights = owned(read_weights(family, encoder, found))
    return Model(
        encoder=encoder,
        weights=weights,
        task=task,
        masks=Masks.full(encoder),
        tokenizer=tokenizer,
        source={
            "name": Path(name).name,
            "model_type": str(config["model_type"]),
            "digest": digest(weights, task, encoder),
        },
    )


def _tensors(path: Path) -> dict[str, Any]:
    """Load a weight file without running any code that is in it."""
    from safetensors.torch import load_file

    try:
        if path.name.endswith(".index.json"):
            return {k: v for shard in _shards(path) for k, v in load_file(shard).items()}
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"'{path.name}' is {_kind(path)}, not a state dict; it was not executed\n"
            "save it with torch.save(model.state_dict(), 'model.pt')"
        ) from error
    except ModelError:
        raise
    except Exception as error:
        # A damaged pickle raises anything from KeyError to AssertionError.
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise ModelError(f"'{path.name}' is damaged or not a weight file: {first}") from error
    if not isinstance(found, Mapping):
        raise ModelError(f"'{path.name}' holds a {type(found).__name__}, not a state dict")
    return dict(found)


def _kind(path: Path) -> str:
    """Describe a file that torch refused to load."""
    with path.open("rb") as file:
        head = file.read(32)
    if head.lstrip()[:1] in (b"{", b"["):  # neither begins a pickle
        return "JSON text"
    if head[:1] == b"\x80" or head[:2] == b"PK":
        return "a pickled object"
    return f"a file of another kind (it begins with {head[:16]!r})"


def _shards(index: Path) -> list[Path]:
    """The files that an index names, all of them beside it."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
        raise ModelError(f"{index.name} has no 'weight_map' of tensor names to file names")
    shards = sorted(set(names.values()))
    outside = [x for x in shards if Path(x).name != x or x == ".." or "\\" in x]
    if outside:
        raise ModelError(f"{index.name} names a file outside its folder: '{outside[0][:80]}'")
    return [index.parent / shard for shard in shards]


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=[*DOWNLOADS, *WEIGHT_FILES]))
    except Exception as error:  # every kind of network, name and permission fault
        first = str(error).strip().split("\n")[0][:200]
        raise ModelError(
            f"no folder '{name}' here, and the hub could not give it: {first}\n"
            + hub_cure(error, "check the name, or give a local folder")
        ) from error
