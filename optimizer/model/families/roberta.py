"""RoBERTa, Liu et al. 2019, https://arxiv.org/abs/1907.11692, with XLM-R and CamemBERT.

RoBERTa is BERT with another rule for positions: real tokens are counted from pad_id + 1 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from prumux.optimizer.model.sizes import Encoder

from .bert import ENCODER_NAMES, Bert, prefixed
from .family import Config, Part

DENSE_HEAD = {"head.dense": "classifier.dense", "head.output": "classifier.out_proj"}
ONE_MAP = {"head.output": "classifier"}


class Roberta(Bert):
    """RoBERTa: BERT with positions that start after the padding id, and another head."""

    model_types: ClassVar[tuple[str, ...]] = ("roberta", "xlm-roberta", "camembert")

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        given = {"pad_token_id": 1, "layer_norm_eps": 1e-5} | dict(config)
        return replace(super().sizes(given), positions_from="padding")

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        return prefixed("roberta", ENCODER_NAMES) | (DENSE_HEAD if e.pooled else ONE_MAP)


FAMILY = Roberta()
