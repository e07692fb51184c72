"""ELECTRA, Clark et al. 2020, https://arxiv.org/abs/2003.10555

ELECTRA is BERT with narrow embeddings, a linear map to the hidden size, and GELU in the head.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from prumux.optimizer.model.sizes import Encoder

from .bert import ENCODER_NAMES, Bert, prefixed
from .family import Config, Part
from .roberta import DENSE_HEAD, ONE_MAP

PROJECT = {"embeddings.project": "embeddings_project"}


class Electra(Bert):
    """ELECTRA: BERT whose embeddings are projected to the hidden size."""

    model_types: ClassVar[tuple[str, ...]] = ("electra",)
    projects: ClassVar[bool] = True

    def sizes(self, config: Config) -> Encoder:
        """See `Family.sizes`."""
        return replace(super().sizes(config), head="gelu")

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """See `Family.names`."""
        head = DENSE_HEAD if e.pooled else ONE_MAP
        return prefixed("electra", ENCODER_NAMES | PROJECT) | head


FAMILY = Electra()
