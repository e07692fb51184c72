"""BERT, Devlin et al. 2019, https://arxiv.org/abs/1810.04805

BERT has a norm after each branch. RoBERTa, DistilBERT and ELECTRA are variants of BERT.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.axes import (
    EMBEDDING,
    FFN,
    HEADS,
    HIDDEN,
    Weight,
    linear,
    norm,
    table,
)
from prumux.optimizer.model.ops import Embeddings, Lookup, Ops, Value
from prumux.optimizer.model.sizes import Branch, Encoder, Layer

from .config_fields import activation, head_dim, layer_count, norm_eps, size
from .family import Config, Family, Part

ENCODER_NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{i}.attention.query": "encoder.layer.{i}.attention.self.query",
    "layers.{i}.attention.key": "encoder.layer.{i}.attention.self.key",
    "layers.{i}.attention.value": "encoder.layer.{i}.attention.self.value",
    "layers.{i}.attention.output": "encoder.layer.{i}.attention.output.dense",
    "layers.{i}.attention.norm": "encoder.layer.{i}.attention.output.LayerNorm",
    "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
    "layers.{i}.ffn.norm": "encoder.layer.{i}.output.LayerNorm",
}


def prefixed(prefix: str, names: Mapping[str, str]) -> dict[str, str | Part]:
    """The names of modules, with the prefix of the encoder in a whole checkpoint."""
    return {ours: f"{prefix}.{theirs}" for ours, theirs in names.items()}


class Bert(Family):
    """BERT: absolute positions, token types, and a norm after each attention and FFN."""

    model_types: ClassVar[tuple[str, ...]] = ("bert",)
    projects: ClassVar[bool] = False
    """True if a linear map may project embeddings of another width to the hidden size."""

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        kind = config.get("position_embedding_type", "absolute")
        if kind != "absolute":
            raise ModelError(
                f"config.json: position_embedding_type '{kind!s:.40}' is not supported, only "
                "'absolute'"
            )
        hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        embedding = size(config, "embedding_size", default=hidden)
        if embedding != hidden and not self.projects:
            raise ModelError(
                f"config.json: embedding_size is {embedding}, hidden_size is {hidden}: "
                f"{self.model_types[0]} has no map between them, remove embedding_size"
            )
        layer = Layer(heads, size(config, "intermediate_size"))
        return Encoder(
            vocab=size(config, "vocab_size"),
            positions=size(config, "max_position_embeddings"),
            token_types=size(config, "type_vocab_size", default=0, least=0),
            embedding=embedding,
            hidden=hidden,
            head_dim=head_dim(hidden, heads),
            layers=(layer,) * layer_count(config, "num_hidden_layers"),
            labels=1,
            activation=activation(config.get("hidden_act", "gelu")),
            norm_eps=norm_eps(config, "layer_norm_eps", 1e-12),
            pad_id=size(config, "pad_token_id", default=0, least=0),
            projected=embedding != hidden,
            family=self.model_types[0],
        )

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        dense = {"head.dense": "bert.pooler.dense", "head.output": "classifier"}
        return prefixed("bert", ENCODER_NAMES) | dense

    def embeddings(self, e: Encoder) -> Embeddings:
        """Words, positions and token types, and the linear map to the hidden size if any."""
        lookups = [
            Lookup("embeddings.word", "ids"),
            Lookup("embeddings.position", "positions"),
        ]
        weights = [
            *table("embeddings.word", e.vocab, EMBEDDING),
            *table("embeddings.position", e.positions, EMBEDDING),
        ]
        if e.token_types:
            lookups.append(Lookup("embeddings.token_type", "token_types"))
            weights += table("embeddings.token_type", e.token_types, EMBEDDING)
        weights += norm("embeddings.norm", EMBEDDING)
        project = "embeddings.project" if e.projected else None
        if project:
            weights += linear(project, HIDDEN, EMBEDDING)
        return Embeddings(tuple(lookups), tuple(weights), "embeddings.norm", project)

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """See `Family.branch_weights`."""
        at, i = branch.name, branch.index
        if branch.kind == "ffn":
            maps = linear(f"{at}.up", FFN, HIDDEN, i) + linear(f"{at}.down", HIDDEN, FFN, i)
            return maps + self.norm_weights(branch)
        parts = [linear(f"{at}.{x}", HEADS, HIDDEN, i) for x in ("query", "key", "value")]
        maps = (*parts[0], *parts[1], *parts[2], *linear(f"{at}.output", HIDDEN, HEADS, i))
        return maps + self.norm_weights(branch)

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """See `Family.inner`."""
        at = branch.name
        if branch.kind == "ffn":
            return ops.activation(ops.encoder.activation, ops.linear(f"{at}.up", rows))
        query = ops.linear(f"{at}.query", rows)
        key, value = ops.linear(f"{at}.key", x), ops.linear(f"{at}.value", x)
        return ops.attention(branch, query, key, value)


FAMILY = Bert()
