"""Make a token classification task from plain text: which words have a capital letter?

    python bench/truecasing.py TEXTS --out DIR

`TEXTS` contains train.parquet and validation.parquet with a column `text`. A row has one to
three sentences in lower case. The first word of each sentence has no label, because every
sentence starts with a capital. Half of the validation texts become the test file.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LABELS = ("lower", "capital")
UNKNOWN = -100
WORDS = range(4, 41)
"""Number of words of a sentence. Shorter and longer sentences are left out."""


def sentences(text: str) -> Iterator[list[str]]:
    """Split a text into sentences: lists of words and punctuation marks."""
    for line in text.split("\n"):
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z])", line):
            words = re.findall(r"\w+|[^\w\s]", sentence)
            if len(words) in WORDS:
                yield words


def rows(texts: list[str], most: int, seed: int) -> Iterator[dict[str, Any]]:
    """Make up to `most` rows with `tokens` and `tags`, from the texts in random order."""
    draw = random.Random(seed)
    order = list(texts)
    draw.shuffle(order)
    made = 0
    for text in order:
        left = list(sentences(text))
        while left and made < most:
            count = draw.randint(1, 3)
            piece, left = left[:count], left[count:]
            yield {
                "tokens": [w.lower() for words in piece for w in words],
                "tags": [
                    UNKNOWN if not i or not w[0].isalpha() else int(w[0].isupper())
                    for words in piece
                    for i, w in enumerate(words)
                ],
            }
            made += 1


def main() -> None:
    """Write train.jsonl, validation.jsonl, test.jsonl and labels.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs=2, default=(20_000, 2_000))
    options = parser.parse_args()
    from pyarrow import parquet

    read = {
        split: parquet.read_table(options.texts / f"{split}.parquet")["text"].to_pylist()
        for split in ("train", "validation")
    }
    half = len(read["validation"]) // 2
    parts = {
        "train": (read["train"], options.rows[0]),
        "validation": (read["validation"][:half], options.rows[1]),
        "test": (read["validation"][half:], options.rows[1]),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    for seed, (name, (texts, most)) in enumerate(parts.items()):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows(texts, most, seed)]
        (options.out / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{name}: {len(lines)} rows")  # noqa: T201
    (options.out / "labels.json").write_text(
        json.dumps({"labels": LABELS}) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
