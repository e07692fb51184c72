"""A bag of embeddings: the scaled sum of a row's vectors, and one linear map. It has no layer.

    z = A x + c,    x = 1 / sqrt(n) sum_t (u(w_t) + v(h(w_{t-1}, w_t)))

- u: one vector for each piece. The length of the vector is the weight of the piece.
- h: the hash that maps pairs of neighbouring pieces to buckets.
- v: one vector for each bucket.
- n: the number of real tokens of a row; the sum runs over them.

Each token type has its own vectors for pieces. So the same piece has different vectors in the
two texts of a pair.

No checkpoint belongs to this family. The pass `bag` makes its models.
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
    """The sizes of a bag of embeddings with the inputs and outputs of the given model.

    Args:
        given: sizes of the given model.
        width: number of entries of each vector.
        buckets: number of vectors for pairs of pieces; 0 = no vectors for pairs.
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
    """Number of vectors for pieces: one for each piece and token type."""
    return max(1, e.token_types) * e.vocab


class BagFamily(Family):
    """The bag of embeddings."""

    model_types: ClassVar[tuple[str, ...]] = (NAME,)

    def sizes(self, config: Config) -> Encoder:
        """Raise an error: no checkpoint belongs to this family."""
        del config
        self._refuse()

    def names(self, e: Encoder) -> Mapping[str, str | Part]:
        """Raise an error: no checkpoint belongs to this family."""
        del e
        self._refuse()

    def embeddings(self, e: Encoder) -> Embeddings:
        """The vectors of pieces, and the vectors of pairs if there are buckets."""
        # Even a single token type is read: otherwise a graph would drop the input.
        lookups = [Lookup("embeddings.piece", "segments" if e.token_types else "ids")]
        weights = [*table("embeddings.piece", pieces_of(e), EMBEDDING)]
        if buckets := int(e.number("buckets")):
            lookups.append(Lookup("embeddings.pair", "pairs"))
            weights += table("embeddings.pair", buckets, EMBEDDING)
        return Embeddings(tuple(lookups), tuple(weights))

    def branch_weights(self, e: Encoder, branch: Branch) -> tuple[Weight, ...]:
        """No weights: there is no layer."""
        del e, branch
        return ()

    def inner(self, ops: Ops, branch: Branch, x: Value, rows: Value) -> Value:
        """Raise an error: there is no layer."""
        raise ModelError(f"a bag of embeddings has no {branch.name}")

    def _refuse(self) -> NoReturn:
        raise ModelError(
            f"model_type '{NAME}' is that of no checkpoint: the pass '{NAME}' makes such "
            "models\ngive the model that it was made from"
        )


BAG = BagFamily()
