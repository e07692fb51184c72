"""ALBERT, Lan et al. 2019, https://arxiv.org/abs/1909.11942

ALBERT is BERT with narrow embeddings, a linear map to the hidden size, and one layer that runs
several times. prumux makes a copy for every layer. Pruning and training change each copy
separately. A graph stores equal copies only once. This family was tested only with random
weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from prumux.optimizer.model.sizes import Encoder

from .bert import Bert, prefixed
from .config_fields import size
from .family import Config, Part

LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "embeddings.project": "encoder.embedding_hidden_mapping_in",
    "layers.{i}.attention.query": f"{LAYER}.attention.query",
    "layers.{i}.attention.key": f"{LAYER}.attention.key",
    "layers.{i}.attention.value": f"{LAYER}.attention.value",
    "layers.{i}.attention.output": f"{LAYER}.attention.dense",
    "layers.{i}.attention.norm": f"{LAYER}.attention.LayerNorm",
    "layers.{i}.ffn.up": f"{LAYER}.ffn",
    "layers.{i}.ffn.down": f"{LAYER}.ffn_output",
    "layers.{i}.ffn.norm": f"{LAYER}.full_layer_layer_norm",
    "head.dense": "pooler",
}
DEFAULTS = {"embedding_size": 128, "hidden_act": "gelu_new", "type_vocab_size": 2}


class Albert(Bert):
    """ALBERT: BERT with copies of one layer, and a linear map after the embeddings."""

    model_types: ClassVar[tuple[str, ...]] = ("albert",)
    projects: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        for key in ("num_hidden_groups", "inner_group_num"):  # no published model has more
            size(config, key, default=1, most=1)
        return replace(super().sizes(DEFAULTS | dict(config)), projected=True)

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        return prefixed("albert", NAMES) | {"head.output": "classifier"}


FAMILY = Albert()
