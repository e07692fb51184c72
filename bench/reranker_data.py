"""Make data for a reranker from articles with titles: queries with hard negatives.

    python bench/reranker_data.py TEXTS --out DIR [--queries 3000] [--validation-queries 600]

`TEXTS` contains `train.parquet` and `validation.parquet` with the columns `title` and `text`.
A query is a title. The first words of the title's article are a passage with grade 2, and
words from the middle of the article are a passage with grade 1. The passages with grade 0 are
first words of other articles, those most similar to the title by TF-IDF. Then run:

    python bench/fine_tune.py BASE --data DIR --out MODEL --score
    prumux-opt MODEL --data DIR --budget 1%
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

WORDS = 60
"""Number of words of a passage."""
NEGATIVES = 8
CHUNK = 256
"""Number of queries that are compared with all passages at once."""


def passages(text: str) -> tuple[str, str]:
    """Cut the head and the middle out of an article."""
    words = text.split()
    middle = max(WORDS, len(words) // 2)
    return " ".join(words[:WORDS]), " ".join(words[middle : middle + WORDS])


def made(titles: list[str], texts: list[str], queries: int, seed: int) -> pd.DataFrame:
    """Make rows of query, passage and label.

    Args:
        titles, texts: titles and texts of all articles.
        queries: number of articles to draw.
        seed: seed for drawing the articles.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    long = [i for i, x in enumerate(texts) if len(x.split()) >= 2 * WORDS]
    parts = [passages(texts[i]) for i in long]
    words = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    heads = words.fit_transform([x for x, _ in parts])
    asked = words.transform([titles[i] for i in long])
    drawn = np.random.default_rng(seed).permutation(len(long))[:queries]
    rows: list[tuple[str, str, int]] = []
    for start in range(0, len(drawn), CHUNK):
        some = drawn[start : start + CHUNK]
        alike = (asked[some] @ heads.T).toarray()
        alike[np.arange(len(some)), some] = -1  # a title's own article is no negative
        nearest = np.argsort(-alike, axis=1, kind="stable")[:, :NEGATIVES]
        for i, others in zip(some.tolist(), nearest.tolist(), strict=True):
            title = titles[long[i]]
            rows += [(title, parts[i][0], 2), (title, parts[i][1], 1)]
            rows += [(title, parts[j][0], 0) for j in others]
    return pd.DataFrame(rows, columns=["query", "passage", "label"])


def main() -> None:
    """Write `train.parquet`, `validation.parquet` and `test.parquet`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--queries", type=int, default=3000, help="of the train split")
    parser.add_argument("--validation-queries", type=int, default=600, help="also of test")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    given = pd.read_parquet(options.texts / "train.parquet")
    # The train split has many articles. A part of them is held out for certification.
    order = np.random.default_rng(0).permutation(len(given))
    held = len(given) // 4
    parts = {"validation": order[:held], "train": order[held:]}
    frames = {k: given.iloc[v] for k, v in parts.items()}
    frames["test"] = pd.read_parquet(options.texts / "validation.parquet")
    for name, frame in frames.items():
        titles, texts = frame["title"].tolist(), frame["text"].tolist()
        queries = options.queries if name == "train" else options.validation_queries
        made(titles, texts, queries, 0).to_parquet(options.out / f"{name}.parquet")


if __name__ == "__main__":
    main()
