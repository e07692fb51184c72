"""GTE (mGTE), Zhang et al. 2024, https://arxiv.org/abs/2407.19669

GTE is NomicBERT with biases in attention and in the FFN's output map. This family was tested
only with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from prumux.optimizer.model.sizes import Encoder

from .family import Part
from .nomic_bert import NomicBert

AT = "gte.encoder.layer.{i}"
NAMES: dict[str, str | Part] = {
    "embeddings.word": "gte.embeddings.word_embeddings",
    "embeddings.token_type": "gte.embeddings.token_type_embeddings",
    "embeddings.norm": "gte.embeddings.LayerNorm",
    "layers.{i}.attention.query": Part(f"{AT}.attention.qkv_proj", 0, 3),
    "layers.{i}.attention.key": Part(f"{AT}.attention.qkv_proj", 1, 3),
    "layers.{i}.attention.value": Part(f"{AT}.attention.qkv_proj", 2, 3),
    "layers.{i}.attention.output": f"{AT}.attention.o_proj",
    "layers.{i}.attention.norm": f"{AT}.attn_ln",
    "layers.{i}.ffn.gate": Part(f"{AT}.mlp.up_gate_proj", 0, 2),
    "layers.{i}.ffn.up": Part(f"{AT}.mlp.up_gate_proj", 1, 2),
    "layers.{i}.ffn.down": f"{AT}.mlp.down_proj",
    "layers.{i}.ffn.norm": f"{AT}.mlp_ln",
    "head.dense": "gte.pooler.dense",
    "head.output": "classifier",
}


class Gte(NomicBert):
    """GTE in the form of transformers 5. Alibaba's `model_type` `new` is not supported."""

    model_types: ClassVar[tuple[str, ...]] = ("gte",)
    types: ClassVar[int] = 1
    base: ClassVar[float] = 160_000.0
    act: ClassVar[str] = "gelu"
    pad: ClassVar[int] = 1
    biased: ClassVar[tuple[str, ...]] = ("query", "key", "value", "output", "down")

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        del e
        return NAMES


FAMILY = Gte()
