"""Damage to weight files, configs and tokenizer files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from .values import change_json, change_tree, damage_file, dumps, odd, shown

DTYPES = tuple(
    getattr(torch, x)
    for x in (
        "float16",
        "bfloat16",
        "float64",
        "int8",
        "int64",
        "bool",
        "uint8",
        "complex64",
        "float8_e4m3fn",
    )
)
CONFIG_KEYS = (
    *(
        "is_decoder",
        "add_cross_attention",
        "hidden_act",
        "position_embedding_type",
        "num_labels",
    ),
    *("problem_type", "auto_map", "custom_pipelines", "quantization_config", "id2label"),
    *(
        "label2id",
        "torch_dtype",
        "pruned_heads",
        "head_dim",
        "embedding_size",
        "layer_norm_eps",
    ),
    *(
        "architectures",
        "model_type",
        "tie_word_embeddings",
        "chunk_size_feed_forward",
        "prumux",
    ),
    *("global_attn_every_n_layers", "local_attention", "layer_types", "rope_theta"),
    *("classifier_pooling", "pad_token_id", "type_vocab_size", "hidden_dropout_prob"),
)
TOKENIZER_KEYS = (
    *("auto_map", "tokenizer_class", "model_max_length", "truncation_side", "padding_side"),
    *("model_input_names", "do_lower_case", "added_tokens_decoder", "pad_token", "cls_token"),
    *(
        "chat_template",
        "backend",
        "extra_special_tokens",
        "truncation",
        "padding",
        "normalizer",
    ),
)
Damage = Callable[[Random, Path], str]
"""Damages inputs in a folder, and returns a description of the damage."""
CANARY = "canary"
"""A file that appears if code in an input was executed."""


class Bomb:
    """An object that creates the canary file when it is unpickled."""

    def __init__(self, path: Path, by: str) -> None:
        self.path, self.by = str(path), by

    def __reduce__(self) -> Any:
        import os

        if self.by == "exec":
            return exec, (f"open({self.path!r}, 'w').close()",)
        return os.system, (f"touch '{self.path}'",)


def weights_of(model: Path) -> Path:
    """Path of the weight file of a folder, or of one shard of the weights."""
    ends = (".safetensors", ".bin", ".pt")
    return min(x for x in model.iterdir() if x.suffix in ends)


def weight_bytes(random: Random, model: Path) -> str:
    """Damage the bytes of a weight file."""
    return damage_file(random, weights_of(model))


def header(random: Random, model: Path) -> str:
    """Change the header of a safetensors file, but not the data."""
    path = weights_of(model)
    if path.suffix != ".safetensors":
        return tensors(random, model)
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tree, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    if random.random() < 0.15:
        size = random.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])
        path.write_bytes(struct.pack("<Q", size) + data[8:])
        return f"header of {size} bytes"
    name = random.choice([x for x in tree if x != "__metadata__"])
    entry = tree[name]
    kind = random.choice(("dtype", "shape", "data_offsets", "any"))
    if kind == "dtype":
        entry["dtype"] = random.choice(
            ["F16", "BF16", "F64", "I8", "U8", "BOOL", "F8_E4M3", "X", "", None, 7]
        )
    elif kind == "shape":
        entry["shape"] = _odd_shape(random, entry["shape"])
    elif kind == "data_offsets":
        begin, end = entry["data_offsets"]
        entry["data_offsets"] = random.choice(
            [
                [end, begin],
                [begin, begin],
                [begin + 4, end + 4],
                [0, 2**62],
                [-4, end],
                [begin],
                [],
            ]
        )
    else:
        tree, said = change_tree(random, tree, ("__metadata__", name))
    said = said if kind == "any" else f"{name}.{kind} = {entry[kind]}"
    text = dumps(tree).encode("utf-8", "surrogatepass")
    path.write_bytes(struct.pack("<Q", len(text)) + text + rest)
    return f"header: {said}"


def _odd_shape(random: Random, shape: list[int]) -> Any:
    big = [2**40, *shape[1:]]
    wrong: list[Any] = [[*shape, 1], shape[::-1], [], [0], big, [-1, *shape[1:]], None, "x"]
    more = [math.prod(shape)], [float(x) for x in shape], [2**32, 2**32]
    return random.choice([*wrong, *more])


def tensors(random: Random, model: Path) -> str:
    """Change a tensor's dtype, shape, values or name; or drop or add one, or rename all."""
    path = weights_of(model)
    found = _read(path)
    inner = found.get("state_dict", found)
    name = random.choice([k for k, x in inner.items() if isinstance(x, Tensor)])
    x = inner[name]
    kind = random.choice(("dtype", "shape", "values", "rename", "drop", "add", "prefix"))
    if kind == "dtype":
        inner[name] = x.to(random.choice(DTYPES))
        said = str(inner[name].dtype)
    elif kind == "shape":
        inner[name] = _reshaped(random, x)
        said = f"{list(x.shape)} -> {list(inner[name].shape)}"
    elif kind == "values":
        value = random.choice([math.nan, math.inf, -math.inf, 1e38, 0.0, 1e-40])
        inner[name] = torch.full_like(x, value)
        said = str(value)
    elif kind == "rename":
        new = random.choice(
            [f"{name} ", name.upper(), f"x.{name}", name[:-1], "ünï", "", "a" * 5000]
        )
        inner[new] = inner.pop(name)
        said = shown(new)
    elif kind == "drop":
        del inner[name]
        said = ""
    elif kind == "add":
        said = random.choice(
            ["loss.weight", "bert.embeddings.position_ids", "x", f"{name}.scale"]
        )
        inner[said] = torch.ones(3)
    else:
        said = random.choice(["model.", "module.", "net.encoder.", "_orig_mod."])
        renamed = {f"{said}{k}": x for k, x in inner.items()}
        inner.clear()
        inner.update(renamed)
    _write(path, found)
    return f"tensor {name}: {kind} {said}"


def _reshaped(random: Random, x: Tensor) -> Tensor:
    made = [
        x[:-1],
        torch.cat([x, x]),
        x.reshape(-1),
        x[None],
        x.sum(),
        x[:0],
        x.reshape(1, -1),
    ]
    return random.choice([*made, x.T.contiguous() if x.ndim == 2 else x[1:]])


def _read(path: Path) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(load_file(path))
    return dict(torch.load(path, weights_only=True))


def _write(path: Path, found: Mapping[str, Any]) -> None:
    if path.suffix == ".safetensors":
        save_file({k: x.contiguous() for k, x in found.items()}, path)
    else:
        torch.save(found, path)


def pickled(random: Random, model: Path) -> str:
    """Add an object to a pickle: it would run code, or does not belong into a state dict."""
    path = weights_of(model)
    found = _read(path)
    target = path if path.suffix != ".safetensors" else model / "pytorch_model.bin"
    if path.suffix == ".safetensors" and random.random() < 0.9:
        path.unlink()
    inner = found.get("state_dict", found)
    name = random.choice(list(inner))
    value: Any = random.choice(
        [
            Bomb(model / CANARY, "exec"),
            Bomb(model / CANARY, "system"),
            random.choice([None, 1, "x", [1], {"a": 1}, {1: torch.ones(2)}, (torch.ones(2),)]),
            torch.nn.Linear(2, 2),
            Path("x"),
        ]
    )
    place = random.choice(("tensor", "config", "all", "new", "key"))
    if place == "all":
        found = value
    elif place == "key":
        inner[random.choice([7, None, ("a", "b"), b"x"])] = inner.pop(name)
    else:
        found[{"tensor": name, "config": "config", "new": "optimizer"}[place]] = value
    torch.save(found, target, _use_new_zipfile_serialization=random.random() < 0.7)
    return f"pickle {target.name}: {place} is {type(value).__name__}"


def config_file(random: Random, model: Path) -> str:
    """Change config.json."""
    return change_json(random, model / "config.json", CONFIG_KEYS)


def index_file(random: Random, model: Path) -> str:
    """Change the index of shards. A model without an index gets one."""
    path = model / "model.safetensors.index.json"
    if not path.exists():
        weights = weights_of(model)
        names = _read(weights)
        path.write_text(
            json.dumps({"metadata": {}, "weight_map": dict.fromkeys(names, weights.name)}),
            encoding="utf-8",
        )
        if weights.name == "model.safetensors":
            weights.rename(model / "other.safetensors")
    return change_json(random, path, ("weight_map",))


def tokenizer_file(random: Random, model: Path) -> str:
    """Change, damage or delete a file of the tokenizer."""
    names = (
        "tokenizer.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    )
    path = random.choice([model / x for x in names if (model / x).exists()])
    if random.random() < 0.06:
        path.unlink()
        return f"no {path.name}"
    return change_json(random, path, TOKENIZER_KEYS)


def code(random: Random, model: Path) -> str:
    """Put Python files beside the model, and name them under `auto_map` in its configs.

    A checkpoint with remote code does the same.
    """
    text = f"open({str(model / CANARY)!r}, 'w').close()\nclass Own: pass\n"
    for name in ("modeling_own", "tokenization_own", "configuration_own", "__init__"):
        (model / f"{name}.py").write_text(text, encoding="utf-8")
    (model / "setup.sh").write_text(f"touch {model / CANARY}\n", encoding="utf-8")
    said = []
    for file in random.sample(["config.json", "tokenizer_config.json"], random.choice([1, 2])):
        tree = json.loads((model / file).read_text(encoding="utf-8"))
        tree["auto_map"] = {
            "AutoConfig": "configuration_own.Own",
            "AutoModelForSequenceClassification": "modeling_own.Own",
            "AutoTokenizer": random.choice(
                ["tokenization_own.Own", ["tokenization_own.Own", None]]
            ),
        }
        kind = random.choice(["model_type", "tokenizer_class", "trust_remote_code"])
        tree[kind] = (
            odd(random)
            if random.random() < 0.3
            else {"trust_remote_code": True}.get(kind, "own")
        )
        (model / file).write_text(dumps(tree), encoding="utf-8")
        said.append(f"{file} {kind} = {shown(tree[kind])}")
    return f"own code: {', '.join(said)}"


def files(random: Random, model: Path) -> str:
    """Delete a file, or replace it by a folder, an empty file, a link or a pointer."""
    path = random.choice(sorted(model.iterdir()))
    kind = random.choice(("gone", "folder", "empty", "loop", "nowhere", "lfs", "device"))
    if path.is_dir():
        return f"{path.name}: untouched"
    size = path.stat().st_size
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "loop":
        path.symlink_to(path.name)
    elif kind == "nowhere":
        path.symlink_to("nowhere")
    elif kind == "device":
        path.symlink_to("/dev/null")
    elif kind == "lfs":
        oid = random.randbytes(32).hex()
        path.write_text(
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {size}\n",
            encoding="utf-8",
        )
    return f"{path.name}: {kind}"


CHECKPOINT: dict[str, Damage] = {
    "weight bytes": weight_bytes,
    "safetensors header": header,
    "tensors": tensors,
    "pickle": pickled,
    "shard index": index_file,
    "own code": code,
    "files": files,
}
CONFIG: dict[str, Damage] = {"config.json": config_file, "tokenizer": tokenizer_file}
