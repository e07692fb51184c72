"""MPNet, Song et al. 2020, https://arxiv.org/abs/2004.09297

MPNet is BERT without token types. A learnt bias for the distance between two tokens is added
to the scores of every head. In a checkpoint, all layers share the table of these biases.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.model.axes import HEAD, Weight, table
from prumux.optimizer.model.ops import Ops, Relative, Value
from prumux.optimizer.model.sizes import Branch, Encoder

from .bert import Bert, prefixed
from .config_fields import size
from .family import Config, Part
from .roberta import DENSE_HEAD, ONE_MAP

NAMES = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "layers.{i}.attention.query": "encoder.layer.{i}.attention.attn.q",
    "layers.{i}.attention.key": "encoder.layer.{i}.attention.attn.k",
    "layers.{i}.attention.value": "encoder.layer.{i}.attention.attn.v",
    "layers.{i}.attention.output": "encoder.layer.{i}.attention.attn.o",
    "layers.{i}.attention.norm": "encoder.layer.{i}.attention.LayerNorm",
    "layers.{i}.attention.relative": "encoder.relative_attention_bias",
    "layers.{i}.ffn.up": "encoder.layer.{i}.intermediate.dense",
    "layers.{i}.ffn.down": "encoder.layer.{i}.output.dense",
    "layers.{i}.ffn.norm": "encoder.layer.{i}.output.LayerNorm",
}
BUCKETS = 32
"""Number of buckets. MPNet uses this number even if the config has another one."""
MAX_DISTANCE = 128
"""All distances of this size or more share the last bucket."""


class MPNet(Bert):
    """MPNet: BERT with a relative position bias. Every layer has its own copy for pruning."""

    model_types: ClassVar[tuple[str, ...]] = ("mpnet",)

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        given = {"pad_token_id": 1, "type_vocab_size": 0} | dict(config)
        size(
            given,
            "relative_attention_num_buckets",
            default=BUCKETS,
            least=BUCKETS,
            most=BUCKETS,
        )
        return replace(super().sizes(given), token_types=0, positions_from="padding", pad_id=1)

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        return prefixed("mpnet", NAMES) | (DENSE_HEAD if e.pooled else ONE_MAP)

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """See `Family.branch_weights`."""
        found = super().branch_weights(e, branch)
        if branch.kind == "ffn":
            return found
        return found + table(f"{branch.name}.relative", BUCKETS, HEAD, branch.index)

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """See `Family.inner`."""
        if branch.kind == "ffn":
            return super().inner(ops, branch, x, rows)
        at = branch.name
        query = ops.linear(f"{at}.query", rows)
        key, value = ops.linear(f"{at}.key", x), ops.linear(f"{at}.value", x)
        relative = Relative(f"{at}.relative", buckets(ops.encoder.positions))
        return ops.attention(branch, query, key, value, relative=relative)


@cache
def buckets(positions: int) -> NDArray[np.int64]:
    """Bucket of each distance from 1 - positions to positions - 1.

    Half of the buckets are for keys after the query, the other half for keys before it. In
    each half, half of the buckets are for one distance each. The other buckets cover
    logarithmically growing ranges up to `MAX_DISTANCE` (T5's rule, see `Relative`).
    """
    distance = np.arange(1 - positions, positions)
    half = BUCKETS // 2
    exact = half // 2
    far = np.abs(distance).astype(np.float32)
    ratio = np.log(np.maximum(far, 1) / exact) / math.log(MAX_DISTANCE / exact)
    grown = exact + (ratio * (half - exact)).astype(np.int64)
    within = np.where(far < exact, far.astype(np.int64), np.minimum(grown, half - 1))
    return np.asarray(within + np.where(distance > 0, half, 0), dtype=np.int64)


FAMILY = MPNet()
