"""How much does a smaller vocabulary save, and which texts does it change?

    python bench/vocabulary.py MODEL --data stsb --text TEXTS --unseen sst2 mnli --out FILE

`MODEL` makes embeddings, and `--data` has scored pairs. The trimmed models keep the pieces of
the train split, with or without those of the file `--text` (column `text`), and a margin. For
each trimmed model the script reports:

- the number of pieces and the sizes of files;
- the largest difference of the vectors of test texts that consist of kept pieces;
- Spearman's correlation of all test pairs;
- for each data set, the share of texts with other pieces, their relative number of tokens, and
  unknown pieces.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from prumux.export.graph.graph import build
from prumux.export.graph.int8 import lower
from prumux.optimizer.base.environment import provenance
from prumux.optimizer.base.errors import PrumuxError, UsageError
from prumux.optimizer.base.processors import cpu_threads
from prumux.optimizer.data.files import find_files
from prumux.optimizer.data.layouts import flattened
from prumux.optimizer.data.predict import row_logits, torch_run
from prumux.optimizer.data.rows import Rows, read_rows, read_texts
from prumux.optimizer.data.tokenize import Encoded, encode
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.source import load_model
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.pipeline.own_rows import own_rows
from prumux.optimizer.pipeline.pipeline import Pipeline

CHECKED = 4096
"""Number of train texts on which the pass checks its result."""


@dataclass(frozen=True)
class Study:
    """The given model, the rows, and the given model's vectors."""

    given: Model
    train: Encoded
    test: Encoded
    scores: NDArray[Any]
    """Scores of the test pairs."""
    vectors: NDArray[np.float32]
    """Vectors of the test texts by the given model."""
    unseen: dict[str, Encoded]


def coded(model: Model, rows: Rows, most: int | None = None) -> Encoded:
    """Tokenise the first `most` texts for the model; None = all texts.

    The two texts of a pair count as two.
    """
    assert model.tokenizer is not None
    single = rows if rows.text_b is None else flattened(rows)
    return encode(single.take(range(len(single))[:most]), model.tokenizer, model.encoder)


def vectors_of(model: Model, rows: Encoded) -> NDArray[np.float32]:
    """Compute vectors of length 1, [N, D]."""
    found = np.stack(row_logits(torch_run(model), rows))
    made: NDArray[np.float32] = found / np.linalg.norm(found, axis=1, keepdims=True)
    return made


def spearman(vectors: NDArray[np.float32], scores: NDArray[Any]) -> float:
    """Spearman's correlation of the cosines of pairs with the scores of the pairs."""
    cosines = (vectors[::2] * vectors[1::2]).sum(axis=1)
    return float(spearmanr(cosines, scores).statistic)


def trimmed(study: Study, margin: float, text: str | None) -> Model:
    """Trim the given model: drop the pieces that the train texts and `text` do not use."""
    more = "" if text is None else f" text={json.dumps(text)}"
    pipeline = Pipeline.parse(f"trim-vocabulary{{margin={margin}{more}}}")
    fit = study.train.take(range(len(study.train))[:CHECKED])
    ctx = Context(fit, (), study.given, train=study.train)
    return pipeline.run(study.given, ctx)


def sizes(model: Model) -> dict[str, int]:
    """Count pieces, parameters, and the bytes of tokenizer, weights and ONNX graphs."""
    assert model.tokenizer is not None
    found = {
        "pieces": len(model.tokenizer),
        "parameters": sum(x.numel() for x in model.weights.values()),
    }
    with TemporaryDirectory() as name:
        save_artifact(model, Path(name))
        for file in ("tokenizer.json", "model.safetensors"):
            found[file] = (Path(name) / file).stat().st_size
    plain = build(model)
    found["model.onnx fp32"] = plain.ByteSize()
    found["model.onnx int8"] = lower(plain).ByteSize()
    found["model.onnx fp16"] = build(model, precision="fp16").ByteSize()
    return found


def changed(
    given: Encoded, model: Model, unknown: int
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    """Find the texts with other pieces: a mask [N], and figures about tokens."""
    found, names = own_rows(given, model), np.array(model.kept_pieces or ())
    back = [names[x] for x in found.ids]
    other = np.array([not np.array_equal(a, b) for a, b in zip(back, given.ids, strict=True)])
    before, after = given.lengths, found.lengths
    return other, {
        "texts": len(given),
        "other_pieces": float(other.mean()),
        "tokens": float(after.sum() / before.sum()),
        "tokens_of_others": float(after[other].sum() / before[other].sum())
        if other.any()
        else 1.0,
        "unknown_before": int((given.ids.values == unknown).sum()),
        "unknown_after": int(sum((x == unknown).sum() for x in back)),
    }


def measure(study: Study, margin: float, text: str | None) -> dict[str, Any]:
    """Trim the given model to one choice of texts, and measure it."""
    model = trimmed(study, margin, text)
    assert study.given.tokenizer is not None
    unknown: Any = study.given.tokenizer.unk_token_id
    other, of_test = changed(study.test, model, unknown)
    vectors = vectors_of(model, own_rows(study.test, model))
    cosines = (vectors * study.vectors).sum(axis=1)
    equal = ~other
    return {
        "pipeline": f"trim-vocabulary{{margin={margin}}}",
        "texts": "train split"
        if text is None
        else f"train split and {Path(text).parent.name}",
        "used": model.history[-1].notes["used"],
        "sizes": sizes(model),
        "equal_texts": int(equal.sum()),
        "largest_difference": float(np.abs(vectors - study.vectors)[equal].max()),
        "least_cosine_equal": float(cosines[equal].min()),
        "least_cosine_other": float(cosines[other].min()) if other.any() else None,
        "mean_cosine_other": float(cosines[other].mean()) if other.any() else None,
        "spearman_test": spearman(vectors, study.scores),
        "data": {
            "test": of_test,
            **{k: changed(x, model, unknown)[1] for k, x in study.unseen.items()},
        },
    }


def study_of(options: argparse.Namespace) -> Study:
    """Read the model and the data that all choices share."""
    given = load_model(options.model)
    if given.tokenizer is None or given.encoder.sentence is None:
        raise UsageError(f"'{options.model}' is no embedding model with a tokenizer")
    data = Path(options.data)
    labelled = read_rows(data, given.task, split="test")
    test = coded(given, labelled, options.rows)
    unseen = {}
    for name in map(Path, options.unseen):
        split = "validation" if "validation" in find_files(name) else None
        unseen[name.name] = coded(given, read_texts(name, given.task, split), options.rows)
    scores = np.asarray(labelled.labels)[: len(test) // 2]
    train = coded(given, read_texts(data, given.task, "train"))
    return Study(given, train, test, scores, vectors_of(given, test), unseen)


def table(report: dict[str, Any]) -> Iterator[str]:
    """Format lines for each choice."""
    yield f"dense: {report['dense']}"
    for x in report["choices"]:
        shares = {k: f"{100 * v['other_pieces']:.1f} %" for k, v in x["data"].items()}
        yield f"{x['pipeline']} ({x['texts']}): {x['sizes']} spearman {x['spearman_test']:.4f}"
        yield f"  largest difference {x['largest_difference']:.1e}; other pieces: {shares}"


def main() -> None:
    """Measure, write the JSON, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("model")
    add("--data", required=True, help="folder of scored pairs with train and test")
    add("--text", help="a file of more texts that say which pieces are used")
    add("--unseen", nargs="*", default=[], help="folders whose pieces are compared")
    add("--margin", type=float, nargs="+", default=[0.0, 0.1, 1.0])
    add("--rows", type=int, help="texts of a data set, at most")
    add("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(cpu_threads())
    try:
        study = study_of(options)
        texts = [None] if options.text is None else [None, options.text]
        choices = [measure(study, m, text) for text in texts for m in options.margin]
    except PrumuxError as error:
        raise SystemExit(f"vocabulary.py: {error}") from error
    report = {
        "schema_version": 1,
        "dense": {
            **sizes(study.given),
            "spearman_test": spearman(study.vectors, study.scores),
        },
        "choices": choices,
        "source": study.given.source["digest"],
        **provenance(),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table(report)), file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
