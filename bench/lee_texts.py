"""Do the vectors of an optimised model still rank pairs of texts as people do?

    pip download --no-deps gensim==4.4.0 && unzip gensim-*.whl -d FOLDER
    python bench/lee_texts.py FOLDER/gensim/test/test_data GIVEN RESULT ... --out FILE

`lee.cor` contains 50 news texts, one on each line. `similarities0-1.txt` contains the mean
similarity of each of their 1,225 pairs, as people rated it (Lee, Pincombe and Welsh 2005,
https://hdl.handle.net/2440/28910). The score of a model is Spearman's correlation of these
ratings with the cosines of its vectors. GIVEN runs in torch, each RESULT in its own engine.
The bootstrap draws texts, because pairs that share a text are not independent.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

import prumux
from prumux.optimizer.base.environment import provenance
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import encode
from prumux.optimizer.model.source import load_model

DRAWS = 1000
Floats = NDArray[np.floating[Any]]


def given_vectors(name: str, texts: Sequence[str]) -> Floats:
    """Compute the given model's vectors in torch, [N, D]."""
    model = load_model(name)
    assert model.tokenizer is not None
    rows = encode(Rows(tuple(texts)), model.tokenizer, model.encoder)
    return np.stack(row_logits(torch_run(model), rows))


def correlation(vectors: Floats, ratings: Floats, drawn: NDArray[np.int64]) -> float:
    """Spearman's correlation of cosines and ratings over the pairs of the drawn texts.

    Args:
        vectors: vectors of the texts, [N, D].
        ratings: rated similarities, [N, N].
        drawn: indices of texts. Pairs of a text with itself do not count.
    """
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    one, two = (drawn[x] for x in np.triu_indices(len(drawn), 1))
    one, two = one[one != two], two[one != two]
    cosines = (unit[one] * unit[two]).sum(axis=1)
    return float(spearmanr(cosines, ratings[one, two]).statistic)


def measured(vectors: Floats, dense: Floats, ratings: Floats) -> dict[str, Any]:
    """Score vectors, and give the loss against the given model with its 90 % interval."""
    everything = np.arange(len(ratings))
    random = np.random.default_rng(0)
    losses = []
    for _ in range(DRAWS):
        drawn = random.integers(len(ratings), size=len(ratings))
        losses.append(
            correlation(dense, ratings, drawn) - correlation(vectors, ratings, drawn)
        )
    score = correlation(vectors, ratings, everything)
    return {
        "spearman": score,
        "loss": correlation(dense, ratings, everything) - score,
        "loss_low": float(np.quantile(losses, 0.05)),
        "loss_high": float(np.quantile(losses, 0.95)),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Score all models, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("given")
    parser.add_argument("results", nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args(argv)
    lines = (options.texts / "lee.cor").read_text(encoding="latin-1").splitlines()
    texts = [x for x in lines if x.strip()]
    ratings = np.loadtxt(options.texts / "similarities0-1.txt")
    if ratings.shape != (len(texts), len(texts)):
        raise SystemExit(f"{len(texts)} texts and ratings of shape {ratings.shape}")
    dense = given_vectors(options.given, texts)
    found = {"given": measured(dense, dense, ratings)}
    for name in options.results:
        vectors = prumux.load(name).encode(texts)
        found[Path(name).name] = measured(vectors, dense, ratings)
    values = {"schema_version": 1, "texts": len(texts), "models": found, **provenance()}
    options.out.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    for name, x in found.items():
        print(  # noqa: T201 - the table of a script
            f"{name:20} {100 * x['spearman']:6.2f}  lost {100 * x['loss']:5.2f} "
            f"[{100 * x['loss_low']:.2f}, {100 * x['loss_high']:.2f}]",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
