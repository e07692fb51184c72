"""DeBERTa-v2 and v3, He et al. 2020 and 2021, https://arxiv.org/abs/2006.03654

DeBERTa is BERT with disentangled attention: queries and keys are also multiplied with learnt
vectors for the distance between two tokens. All layers share these vectors. v3 has no
positions and no token types in its embeddings (https://arxiv.org/abs/2111.09543). This family
was tested only with random weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.axes import HEADS, HIDDEN, Weight, linear, norm, table
from prumux.optimizer.model.ops import Disentangled, Embeddings, Ops, Value
from prumux.optimizer.model.sizes import Branch, Encoder

from .bert import ENCODER_NAMES, Bert, prefixed
from .config_fields import flag, head_kind, size
from .family import Config, Part

ATTENTION = "encoder.layer.{i}.attention.self"
NAMES = ENCODER_NAMES | {
    "embeddings.distance": "encoder.rel_embeddings",
    "embeddings.distance_norm": "encoder.LayerNorm",
    "layers.{i}.attention.query": f"{ATTENTION}.query_proj",
    "layers.{i}.attention.key": f"{ATTENTION}.key_proj",
    "layers.{i}.attention.value": f"{ATTENTION}.value_proj",
    "layers.{i}.attention.distance_key": f"{ATTENTION}.pos_key_proj",
    "layers.{i}.attention.distance_query": f"{ATTENTION}.pos_query_proj",
}
HEAD = {"head.dense": "pooler.dense", "head.output": "classifier"}
TERMS = {"c2p": "key", "p2c": "query"}
"""The linear map of distance vectors for each entry of `pos_att_type`."""
LIMIT_DISTANCE = 2**16
"""Upper bound of distances, far above any real model's."""


class DebertaV2(Bert):
    """DeBERTa-v2 and v3: disentangled attention; positions and token types are optional."""

    model_types: ClassVar[tuple[str, ...]] = ("deberta-v2",)
    runs_empty: ClassVar[bool] = False  # its graph has a broadcast MatMul

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        if config.get("conv_kernel_size") not in (None, 0):
            raise ModelError(
                f"config.json: conv_kernel_size is {config['conv_kernel_size']!r:.40}: the "
                "convolution of DeBERTa-v2 xlarge and xxlarge is not supported\n"
                "DeBERTa-v3 has none, nor has a model without conv_kernel_size"
            )
        hidden = size(config, "hidden_size")
        embedding = size(config, "embedding_size", default=hidden)
        if embedding != hidden:
            raise ModelError(
                f"config.json: embedding_size is {embedding}, hidden_size is {hidden}: the "
                "map between them (embed_proj) is not supported"
            )
        e = super().sizes({"layer_norm_eps": 1e-7} | dict(config))
        for key, only in (
            ("pooler_hidden_size", e.hidden),
            ("attention_head_size", e.head_dim),
        ):
            size(config, key, default=only, least=only, most=only)
        constants = _constants(config, e.positions)
        return replace(
            e,
            head=head_kind(config, "pooler_hidden_act", "gelu"),
            constants=tuple(sorted(constants.items())),
        )

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        return prefixed("deberta", NAMES) | HEAD

    def embeddings(self, e: Encoder) -> Embeddings:
        """Words, and positions and token types if the model has them.

        The distance vectors are among the weights if at least one layer has attention heads.
        """
        found = super().embeddings(e)
        lookups, weights = found.lookups, found.weights
        if not e.constant("positions"):
            lookups = tuple(x for x in lookups if x.source != "positions")
            weights = tuple(x for x in weights if x.name != "embeddings.position.weight")
        if e.constant("span") and e.last_attention >= 0:
            weights += table("embeddings.distance", 2 * _distance(e, "span"), HIDDEN)
            if e.constant("distance_norm"):
                weights += norm("embeddings.distance_norm", HIDDEN)
        return replace(found, lookups=lookups, weights=weights)

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """See `Family.branch_weights`."""
        found = super().branch_weights(e, branch)
        if branch.kind == "ffn" or not e.constant("span") or e.constant("shared"):
            return found
        for part in _terms(e):
            found += linear(f"{branch.name}.distance_{part}", HEADS, HIDDEN, branch.index)
        return found

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """See `Family.inner`."""
        if branch.kind == "ffn":
            return super().inner(ops, branch, x, rows)
        at, e = branch.name, ops.encoder
        return ops.attention(
            branch,
            ops.linear(f"{at}.query", rows),
            ops.linear(f"{at}.key", x),
            ops.linear(f"{at}.value", x),
            disentangled=_disentangled(e, at),
            scale=1 / math.sqrt(e.head_dim * (1 + len(_terms(e)))),
        )


@cache
def table_rows(span: int, furthest: int) -> NDArray[np.int64]:
    """Table row of each distance, [2 * half + 1]. Larger distances use the outermost rows.

    If `furthest` is 0, each distance from -span to span - 1 has its own row. Otherwise half of
    the rows are for one distance each. The other rows cover logarithmically growing ranges of
    distances up to `furthest`. The computation is in float32, as in training, because rounding
    decides the row at the borders of the ranges.
    """
    half = furthest or span
    back = torch.arange(half, -half - 1, -1)  # from key to query
    if furthest:
        exact = span // 2
        far = back.abs().clamp(min=exact)
        last = torch.tensor((furthest - 1) / exact)
        grown = torch.ceil(torch.log(far / exact) / torch.log(last) * (exact - 1)) + exact
        back = torch.where(back.abs() <= exact, back, (grown * back.sign()).long())
    found: NDArray[np.int64] = (back + span).clamp(0, 2 * span - 1).numpy()
    return found


def _disentangled(e: Encoder, at: str) -> Disentangled | None:
    if not e.constant("span"):
        return None
    of = "" if e.constant("shared") else "distance_"
    maps = {part: f"{at}.{of}{part}" for part in _terms(e)}
    return Disentangled(
        table="embeddings.distance",
        norm="embeddings.distance_norm" if e.constant("distance_norm") else None,
        rows=table_rows(_distance(e, "span"), _distance(e, "furthest")),
        key=maps.get("key"),
        query=maps.get("query"),
    )


def _terms(e: Encoder) -> list[str]:
    return [part for part in TERMS.values() if e.constant(part)]


def _distance(e: Encoder, name: str) -> int:
    found = e.number(name)
    if found not in range(LIMIT_DISTANCE + 1):
        raise ValueError(f"constant {name} is {found!r:.40}, no distance")
    return int(found)


def _constants(config: Config, positions: int) -> dict[str, Any]:
    """The constants of the family: the kind of embeddings and of distance vectors.

    - positions: True if the embeddings include positions.
    - span: number of table rows on each side, 0 = no table.
    - furthest: all distances of this size or more share one row; 0 = one row for each
      distance.
    - shared: True if the linear maps of queries and keys are also used for the vectors.
    - distance_norm: True if the vectors have a norm.
    - key, query: True if the scores have this term of `Disentangled`.
    """
    kinds = _kinds(config)
    span = furthest = 0
    if flag(config, "relative_attention"):
        if not kinds:
            raise ModelError(
                "config.json: relative_attention is true and pos_att_type is empty, it must "
                'be ["p2c", "c2p"] or one of them'
            )
        most = {"default": -1, "least": -1, "most": LIMIT_DISTANCE}
        reach = size(config, "max_relative_positions", **most)
        reach = positions if reach < 1 else reach
        buckets = size(config, "position_buckets", **most)
        span = buckets if buckets > 0 else reach
        furthest = reach if buckets > 0 else 0
        if buckets > 0 and (buckets % 2 or buckets < 4 or reach - 1 <= buckets // 2):
            raise ModelError(
                f"config.json: position_buckets is {buckets} with max_relative_positions "
                f"{reach}: it must be an even number from 4 to {2 * (reach - 2)}"
            )
    norms = str(config.get("norm_rel_ebd") or "none").lower().split("|")
    if not {x.strip() for x in norms} <= {"none", "layer_norm"}:
        raise ModelError(
            f"config.json: norm_rel_ebd is {config['norm_rel_ebd']!r:.40}, it must be "
            "layer_norm or none"
        )
    return {
        "positions": flag(config, "position_biased_input", default=True),
        "span": span,
        "furthest": furthest,
        "shared": flag(config, "share_att_key"),
        "distance_norm": bool(span) and any("layer_norm" in x for x in norms),
        **{part: kind in kinds for kind, part in TERMS.items()},
    }


def _kinds(config: Config) -> list[str]:
    """The entries of `pos_att_type`, which is a list or a text."""
    given = config.get("pos_att_type") or []
    kinds = [x.strip() for x in given.lower().split("|")] if isinstance(given, str) else given
    if not isinstance(kinds, list) or any(x not in list(TERMS) for x in kinds):
        raise ModelError(
            f"config.json: pos_att_type is {given!r:.60}, it must be a list of "
            f"{' and '.join(TERMS)}"
        )
    return kinds


FAMILY = DebertaV2()
