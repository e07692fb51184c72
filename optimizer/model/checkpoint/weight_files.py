"""Finds and reads weight files. No code from a file is ever executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prumux.optimizer.base import git_lfs
from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.folder import model_folders, read_json

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names of weight files in a model folder. The first existing file is read."""
WRAPPERS = ("state_dict", "model_state_dict", "model", "weights", "module")
"""Keys under which training code stores the state dict."""
OF_TRAINING = re.compile(
    r"optimizer.*|scheduler.*|scaler.*|rng_state.*|training_args.*|random_states.*"
)
"""Stems of files that the Trainer writes next to the weights."""
_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
_OTHER_FORMATS = {
    "tf_model.h5": "TensorFlow weights: save them as PyTorch's with transformers 4, "
    "from_pretrained(folder, from_tf=True).save_pretrained(folder)",
    "flax_model.msgpack": "Flax weights: save them as PyTorch's with transformers 4, "
    "from_pretrained(folder, from_flax=True).save_pretrained(folder)",
    "adapter_model.safetensors": "a PEFT adapter, not a whole model: merge it, "
    "peft_model.merge_and_unload().save_pretrained('merged')",
    "adapter_model.bin": "a PEFT adapter, not a whole model: merge it, "
    "peft_model.merge_and_unload().save_pretrained('merged')",
    "zero_to_fp32.py": "shards of DeepSpeed: join them, python zero_to_fp32.py . .",
    "pytorch_model_fsdp_0": "shards of FSDP: join them, accelerate merge-weights . .",
    "model.onnx": "an ONNX graph: give the PyTorch model that it was exported from",
}
"""Files that prumux cannot read as weights, each with the advice to the user."""


def find_weights(folder: Path) -> tuple[Path, tuple[str, ...]]:
    """The file with a folder's weights, and the names of further weight files, to ignore.

    Raises:
        ModelError: there is no weight file. The message names the folder's other files.
    """
    found = next((folder / x for x in WEIGHT_FILES if (folder / x).exists()), None)
    others = _loose(folder)
    if found is not None:
        read = {x.name for x in _parts(found)} | {found.name}
        return found, tuple(x for x in others if x not in read)
    said = f"'{folder}' has a config.json but no weights"
    expected = f"expected one of: {', '.join(WEIGHT_FILES)}"
    for name, cure in _OTHER_FORMATS.items():
        if (folder / name).exists():
            raise ModelError(f"{said}\n{name} is {cure}\n{expected}")
    if others:
        raise ModelError(f"{said}\nname the file to read, say '{folder / others[0]}'")
    inner = model_folders(folder)
    if inner:
        shown = ", ".join(str(folder / x) for x in inner[:4])
        raise ModelError(f"{said}; its folders hold models\ngive one of them: {shown}")
    raise ModelError(f"{said}\n{expected}")


def read_state(path: Path) -> dict[str, Any]:
    """The state dict in a file, or in the shards of an index, with its `config` if present.

    Raises:
        ModelError: the file is damaged or unsafe, a Git LFS pointer, or no state dict.
    """
    if path.name.endswith(".index.json"):
        parts = [_tensors(x) for x in _parts(path)]
        return {k: v for part in parts for k, v in part.items()}
    found = _tensors(path)
    config = found.pop("config", None)
    inner = _unwrapped(found)
    return inner if config is None else {**inner, "config": config}


def _unwrapped(found: dict[str, Any]) -> dict[str, Any]:
    """The state dict inside a mapping that training code saved with other values."""
    if any(isinstance(x, Tensor) for x in found.values()):
        return found
    for key in WRAPPERS:
        if isinstance(found.get(key), Mapping):
            return _unwrapped(dict(found[key]))
    inner = [x for x in found.values() if isinstance(x, Mapping) and _is_state(x)]
    return dict(inner[0]) if len(inner) == 1 else found


def _is_state(value: Mapping[Any, Any]) -> bool:
    return len(value) > 1 and all(
        isinstance(k, str) and isinstance(x, Tensor) for k, x in value.items()
    )


def _loose(folder: Path) -> list[str]:
    """Names of all weight files in a folder, except the Trainer's own files."""
    try:
        names = sorted(x.name for x in folder.iterdir() if x.suffix in _SUFFIXES)
    except OSError:
        return []
    return [x for x in names if not OF_TRAINING.fullmatch(x.rpartition(".")[0])]


def _tensors(path: Path) -> dict[str, Any]:
    """The content of one file. No code in the file is run."""
    from safetensors.torch import load_file

    if git_lfs.is_pointer(path):
        raise ModelError(git_lfs.cure(path))
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"'{path.name}' is {_kind(path)}, not a state dict; it was not executed"
            f"{_class_in(error)}\n"
            "save it with torch.save(model.state_dict(), 'model.pt')"
        ) from error
    except Exception as error:
        # A damaged pickle raises anything from KeyError to AssertionError.
        first = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise ModelError(f"'{path.name}' is damaged or not a weight file: {first}") from error
    if not isinstance(found, Mapping):
        raise ModelError(f"'{path.name}' holds a {type(found).__name__}, not a state dict")
    return dict(found)


def _class_in(error: Exception) -> str:
    """A line about the class that torch refused to load, if the error names the class."""
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return f"\nit holds an object of the class {found[1]:.80}" if found else ""


def _kind(path: Path) -> str:
    """Describe a file that torch refused to load."""
    with path.open("rb") as file:
        head = file.read(32)
    if head.lstrip()[:1] in (b"{", b"["):  # no pickle begins with these
        return "JSON text"
    if head[:1] == b"\x80" or head[:2] == b"PK":
        return "a pickled object"
    return f"a file of another kind (it begins with {head[:16]!r})"


def _parts(path: Path) -> list[Path]:
    """The shards that an index names, which must be in its folder; or the file itself."""
    if not path.name.endswith(".index.json"):
        return [path]
    names = read_json(path).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(x, str) for x in names.values()):
        raise ModelError(f"{path.name} has no 'weight_map' of tensor names to file names")
    shards = sorted(set(names.values()))
    outside = [x for x in shards if Path(x).name != x or x == ".." or "\\" in x]
    if outside:
        raise ModelError(f"{path.name} names a file outside its folder: '{outside[0][:80]}'")
    gone = [x for x in shards if not (path.parent / x).is_file()]
    if gone:
        raise ModelError(
            f"'{path.name}' is damaged, or its shards were not all copied: {len(gone)} of "
            f"{len(shards)} are missing, the first is '{gone[0][:80]}'"
        )
    return [path.parent / shard for shard in shards]
