"""A bag of embeddings: the mean of a row's vectors, and one linear map. It has no layer.

    z = A x + c,    x = 1 / sqrt(n) sum_t (u(w_t) + v(h(w_{t-1}, w_t)))

with one vector u a piece and one vector v a bucket, into which the hash h throws the pairs of
neighbouring pieces. Sums run over the n real tokens of a row. The weight of a piece is in the
length of its vector. Pieces of each token type have vectors of their own: in pairs of texts
those of the second text.

No checkpoint is of this family: the pass `bag` makes its models.
fastText, Joulin et al. 2016, https://arxiv.org/abs/1607.01759; deep averaging networks, Iyyer
et al. 2015, https://aclanthology.org/P15-1162
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar, NoReturn

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.model.axes import EMBEDDING, Weight, table
from prumux.optimizer.model.ops import Embeddings, Lookup, Ops, Value
from prumux.optimizer.model.sizes import Branch, Encoder, Layer

from .family import Config, Family, Part

NAME = "bag"
PRIME = 1_000_003
"""The hash of a pair is (first * PRIME + second) modulo the number of buckets."""


def bag_sizes(given: Encoder, width: int, buckets: int) -> Encoder:
    """The sizes of a bag of embeddings with the inputs and outputs of a given model.

    Args:
        given: sizes of the given model.
        width: entries of each vector.
        buckets: vectors for pairs of pieces; 0 = pairs have none.
    """
    return replace(
        given,
        embedding=width,
        hidden=width,
        layers=(Layer(0, 0),) * len(given.layers),
        head="linear",
        projected=False,
        pool_early=False,
        pooling="mean_sqrt",
        positions_from="index",
        positions=given.most_tokens,
        family=NAME,
        constants=(("buckets", buckets),),
    )


def pieces_of(e: Encoder) -> int:
    """Vectors of pieces: one for each token type."""
    return max(1, e.token_types) * e.vocab


class BagFamily(Family):
    """The bag of embeddings."""

    model_types: ClassVar[tuple[str, ...]] = (NAME,)

    def sizes(self, config: Config) -> Encoder:
        """Refuse: no checkpoint is of this family."""
        del config
        self._refuse()

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """Refuse: no checkpoint is of this family."""
        del e
        self._refuse()

    def embeddings(self, e: Encoder) -> Embeddings:
        """Pieces, and pairs of them."""
        # Token types are looked at even where there is one, so that no graph drops the input.
        lookups = [Lookup("embeddings.piece", "segments" if e.token_types else "ids")]
        weights = [*table("embeddings.piece", pieces_of(e), EMBEDDING)]
        if buckets := int(e.number("buckets")):
            lookups.append(Lookup("embeddings.pair", "pairs"))
            weights += table("embeddings.pair", buckets, EMBEDDING)
        return Embeddings(tuple(lookups), tuple(weights))

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """Nothing: there is no layer."""
        del e, branch
        return ()

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """Refuse: there is no layer."""
        raise ModelError(f"a bag of embeddings has no {branch.name}")

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"model_type '{NAME}' is that of no checkpoint: the pass '{NAME}' makes such "
            "models\ngive the model that it was made from"
        )


BAG = BagFamily()
