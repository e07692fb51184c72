"""NomicBERT, Nussbaum et al. 2024, https://arxiv.org/abs/2402.01613

NomicBERT is BERT without biases in its linear maps. Positions are rotary, and the units of the
FFN are g(W x) * (V x). This family was tested only with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.axes import Weight
from prumux.optimizer.model.ops import Embeddings, Ops, Rotary, Value
from prumux.optimizer.model.sizes import Branch, Encoder

from .bert import Bert
from .config_fields import rotary_base, size
from .family import Config, Part
from .gated import gated_inner, gated_maps

AT = "nomic_bert.encoder.layers.{i}"
NAMES: dict[str, str | Part] = {
    "embeddings.word": "nomic_bert.embeddings.word_embeddings",
    "embeddings.token_type": "nomic_bert.embeddings.token_type_embeddings",
    "embeddings.norm": "nomic_bert.emb_ln",
    "layers.{i}.attention.query": Part(f"{AT}.attn.Wqkv", 0, 3),
    "layers.{i}.attention.key": Part(f"{AT}.attn.Wqkv", 1, 3),
    "layers.{i}.attention.value": Part(f"{AT}.attn.Wqkv", 2, 3),
    "layers.{i}.attention.output": f"{AT}.attn.out_proj",
    "layers.{i}.attention.norm": f"{AT}.norm1",
    "layers.{i}.ffn.up": f"{AT}.mlp.fc12",
    "layers.{i}.ffn.gate": f"{AT}.mlp.fc11",
    "layers.{i}.ffn.down": f"{AT}.mlp.fc2",
    "layers.{i}.ffn.norm": f"{AT}.norm2",
    "head.dense": "nomic_bert.pooler.dense",
    "head.output": "classifier",
}
"""Tensor names of Nomic's checkpoints. transformers 5 reads and writes the same names."""


class NomicBert(Bert):
    """NomicBERT: rotary positions, a gated FFN, and a norm after each branch."""

    model_types: ClassVar[tuple[str, ...]] = ("nomic_bert",)
    types: ClassVar[int] = 2
    """Default number of token types."""
    base: ClassVar[float] = 1_000.0
    """Default base of rotary positions."""
    act: ClassVar[str] = "silu"
    """Default activation."""
    pad: ClassVar[int] = 0
    """Default padding id."""
    biased: ClassVar[tuple[str, ...]] = ()
    """Names of the branches' linear maps that have biases."""

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        if "n_embd" in config and "hidden_size" not in config:
            raise ModelError(
                "config.json names sizes as Nomic's own code does, such as n_embd\n"
                "name them as transformers 5 does: hidden_size, num_hidden_layers, "
                "num_attention_heads, intermediate_size, max_position_embeddings"
            )
        defaults = {"type_vocab_size": self.types, "hidden_act": self.act}
        e = super().sizes({**defaults, "pad_token_id": self.pad, **config})
        dim = size(config, "head_dim", default=e.head_dim)
        if dim % 2:
            raise ModelError(f"config.json: head_dim is {dim}, rotary positions need pairs")
        base = rotary_base(config, self.base)
        return replace(e, head_dim=dim, constants=(("base", base),))

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        del e
        return NAMES

    def embeddings(self, e: Encoder) -> Embeddings:
        """Words and token types. Positions enter as rotations in attention."""
        found = super().embeddings(e)
        return replace(
            found,
            lookups=tuple(x for x in found.lookups if x.source != "positions"),
            weights=tuple(x for x in found.weights if x.name != "embeddings.position.weight"),
        )

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """See `Family.branch_weights`."""
        return (*gated_maps(branch, self.biased), *self.norm_weights(branch))

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """See `Family.inner`."""
        return gated_inner(ops, branch, x, rows, Rotary(ops.encoder.number("base")))


FAMILY = NomicBert()
