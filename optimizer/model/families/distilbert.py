"""DistilBERT, Sanh et al. 2019, https://arxiv.org/abs/1910.01108

DistilBERT is BERT without token types, with other tensor names and with ReLU in the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from prumux.optimizer.model.sizes import Encoder, Layer

from .bert import Bert, prefixed
from .config_fields import activation, head_dim, layer_count, size
from .family import Config, Part

NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{i}.attention.query": "transformer.layer.{i}.attention.q_lin",
    "layers.{i}.attention.key": "transformer.layer.{i}.attention.k_lin",
    "layers.{i}.attention.value": "transformer.layer.{i}.attention.v_lin",
    "layers.{i}.attention.output": "transformer.layer.{i}.attention.out_lin",
    "layers.{i}.attention.norm": "transformer.layer.{i}.sa_layer_norm",
    "layers.{i}.ffn.up": "transformer.layer.{i}.ffn.lin1",
    "layers.{i}.ffn.down": "transformer.layer.{i}.ffn.lin2",
    "layers.{i}.ffn.norm": "transformer.layer.{i}.output_layer_norm",
}


class Distilbert(Bert):
    """DistilBERT: BERT without token types."""

    model_types: ClassVar[tuple[str, ...]] = ("distilbert",)

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        hidden, heads = size(config, "dim"), size(config, "n_heads")
        layer = Layer(heads, size(config, "hidden_dim"))
        return Encoder(
            vocab=size(config, "vocab_size"),
            positions=size(config, "max_position_embeddings"),
            token_types=0,
            embedding=hidden,
            hidden=hidden,
            head_dim=head_dim(hidden, heads),
            layers=(layer,) * layer_count(config, "n_layers"),
            labels=1,
            head="relu",
            activation=activation(config.get("activation", "gelu"), "activation"),
            pad_id=size(config, "pad_token_id", default=0, least=0),
            family=self.model_types[0],
        )

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        head = {"head.dense": "pre_classifier", "head.output": "classifier"}
        return prefixed("distilbert", NAMES) | head


FAMILY = Distilbert()
