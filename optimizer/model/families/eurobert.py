"""EuroBERT, Boizard et al. 2025, https://arxiv.org/abs/2503.05500

EuroBERT has an RMSNorm before each branch and before the head, rotary positions and a gated
FFN, and no biases. The head reads the first token or the mean of all tokens. With the pooling
"late", its first linear map reads every token, and the mean is taken after this map. This
family was tested only with random weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.axes import HIDDEN, Weight, table
from prumux.optimizer.model.ops import Embeddings, Lookup, Ops, Rotary, Value
from prumux.optimizer.model.sizes import Branch, Encoder, Layer

from .config_fields import (
    activation,
    flag,
    head_dim,
    layer_count,
    norm_eps,
    rotary_base,
    size,
)
from .family import Config, Family, Part
from .gated import gated_inner, gated_maps

NAMES: dict[str, str | Part] = {
    "embeddings.word": "model.embed_tokens",
    "layers.{i}.attention.query": "model.layers.{i}.self_attn.q_proj",
    "layers.{i}.attention.key": "model.layers.{i}.self_attn.k_proj",
    "layers.{i}.attention.value": "model.layers.{i}.self_attn.v_proj",
    "layers.{i}.attention.output": "model.layers.{i}.self_attn.o_proj",
    "layers.{i}.attention.norm": "model.layers.{i}.input_layernorm",
    "layers.{i}.ffn.up": "model.layers.{i}.mlp.gate_proj",
    "layers.{i}.ffn.gate": "model.layers.{i}.mlp.up_proj",
    "layers.{i}.ffn.down": "model.layers.{i}.mlp.down_proj",
    "layers.{i}.ffn.norm": "model.layers.{i}.post_attention_layernorm",
    "final.norm": "model.norm",
    "head.dense": "dense",
    "head.output": "classifier",
}
POOLING: dict[str, Any] = {"bos": "first", "mean": "mean", "late": "mean"}
BASE = 10_000.0
"""The base of rotary positions if the config names none."""


class EuroBert(Family):
    """EuroBERT: RMSNorm before branches, gated FFN, no biases, rotary positions."""

    model_types: ClassVar[tuple[str, ...]] = ("eurobert",)
    pre_norm: ClassVar[bool] = True
    norm_bias: ClassVar[bool] = False
    norm_centred: ClassVar[bool] = False

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        for name in ("attention_bias", "mlp_bias"):
            if flag(config, name):
                raise ModelError(f"config.json: {name} is True, only false is supported")
        hidden, heads = size(config, "hidden_size"), size(config, "num_attention_heads")
        shared = size(config, "num_key_value_heads", default=heads)
        if shared != heads:
            raise ModelError(
                f"config.json: num_key_value_heads is {shared}, num_attention_heads is "
                f"{heads}: keys and values that several heads share are not supported"
            )
        dim = size(config, "head_dim", default=head_dim(hidden, heads))
        if dim % 2:
            raise ModelError(f"config.json: head_dim is {dim}, rotary positions need pairs")
        pooling = config.get("classifier_pooling", "late")
        if not isinstance(pooling, str) or pooling not in POOLING:
            raise ModelError(
                f"config.json: classifier_pooling is {pooling!r:.40}, it must be "
                f"{', '.join(POOLING)}"
            )
        layers = layer_count(config, "num_hidden_layers")
        return Encoder(
            vocab=size(config, "vocab_size"),
            positions=size(config, "max_position_embeddings"),
            token_types=0,
            embedding=hidden,
            hidden=hidden,
            head_dim=dim,
            layers=(Layer(heads, size(config, "intermediate_size")),) * layers,
            labels=1,
            head="gelu",
            activation=activation(config.get("hidden_act", "silu")),
            norm_eps=norm_eps(config, "rms_norm_eps", 1e-5),
            pad_id=size(config, "pad_token_id", default=0, least=0),
            pooling=POOLING[pooling],
            family=self.model_types[0],
            constants=(("base", rotary_base(config, BASE)), ("late", pooling == "late")),
        )

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        del e
        return NAMES

    def embeddings(self, e: Encoder) -> Embeddings:
        """Only words. Positions enter as rotations in attention."""
        weights = table("embeddings.word", e.vocab, HIDDEN)
        return Embeddings((Lookup("embeddings.word", "ids"),), weights)

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """See `Family.branch_weights`."""
        return (*self.norm_weights(branch), *gated_maps(branch))

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """See `Family.inner`."""
        return gated_inner(ops, branch, x, rows, Rotary(ops.encoder.number("base")))

    def for_every_position(self, e: Encoder) -> Encoder:
        """See `Family.for_every_position`.

        This head has one linear map. Late pooling needs two, so it is switched off.
        """
        found = super().for_every_position(e)
        return replace(found, constants=(("base", e.constant("base")), ("late", False)))

    def pooled_head(self, ops: Ops, x: Value) -> Value:
        """See `Family.pooled_head`. With late pooling, the mean follows the first map."""
        if not ops.encoder.constant("late"):
            return super().pooled_head(ops, x)
        x = ops.activation(ops.encoder.head, ops.linear("head.dense", x))
        return ops.linear("head.output", ops.pool(x))


FAMILY = EuroBert()
