"""`certified_answers.jsonl`: some certify rows with the answers of the certified engine.

`prumux-bench --verify` runs the engine on the same rows on the serving machine and compares
the answers. The first line of the file contains facts, every other line one row.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import ModelError
from prumux.optimizer.base.store import file_digest, write_atomic
from prumux.optimizer.data.predict import Arrivals
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.model.artifact import STAGES

FILE = "certified_answers.jsonl"
MOST_ROWS = 256
UNCHECKED = (FILE, "tensorrt.sh", "pipeline.txt", "README.md")
"""Files in a result's folder that no engine reads."""


@dataclass(frozen=True)
class CertifiedFacts:
    """Facts about the certificate, and about the engine that gave the answers."""

    metric: str
    limit: float | None
    """The loss that the budget allows; None = no budget."""
    loss_upper: float
    """Upper bound of the loss, computed from all certify rows."""
    confidence: float
    certified_rows: int
    seed: int
    """Seed of the groups of rows that share a forward pass in a multiplexed model."""
    engine: Mapping[str, str]
    """Facts about the engine that gave the answers."""
    files: Mapping[str, str]
    """SHA-256 of the files that the engine and the tokenizer are read from."""
    format: int = 1
    arrivals: Arrivals = "sorted"
    """The order in which the rows were batched."""


@dataclass(frozen=True, eq=False)
class KeptAnswers:
    """Rows with the answers of the certified engine."""

    facts: CertifiedFacts
    rows: Rows
    ids: Ragged
    """Token ids of each row."""
    logits: tuple[NDArray[np.float32], ...]
    """Logits of each row, [C] or [T, C]."""
    references: tuple[Any, ...]
    """The reference for the metric, per row: the label or the given model's answer."""
    scored: tuple[NDArray[np.bool_], ...] | None = None
    """The scored positions of each row, for tasks that label words."""
    question: tuple[int, ...] | None = None
    """The row of each window, for tasks whose ids and logits belong to windows."""


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files in a result that the engine and the tokenizer are read from."""
    places = [x for x in (folder, *(folder / x for x in STAGES)) if x.is_dir()]
    return {
        x.relative_to(folder).as_posix(): file_digest(x)
        for place in places
        for x in sorted(place.iterdir())
        if x.is_file() and x.name not in UNCHECKED
    }


def write_answers(kept: KeptAnswers, folder: Path) -> None:
    """Write `certified_answers.jsonl` to a folder."""
    lines = [json.dumps(asdict(kept.facts))]
    for i, ids in enumerate(kept.ids.tolist()):
        row: dict[str, Any] = {}
        at = i if kept.question is None else kept.question[i]
        if kept.rows.words is not None:
            row["words"] = kept.rows.words[i]
        else:
            row["text"] = kept.rows.text_a[at]
        if kept.rows.text_b is not None:
            row["text_b"] = kept.rows.text_b[at]
        if kept.question is not None:
            row["question"] = at
        if kept.rows.groups is not None:
            row["query"] = int(kept.rows.groups[i])
        row |= {"ids": ids, "logits": kept.logits[i].tolist()}
        row["reference"] = np.asarray(kept.references[at]).tolist()
        if kept.scored is not None:
            row["scored"] = np.flatnonzero(kept.scored[i]).tolist()
        lines.append(json.dumps(row, ensure_ascii=False))
    text = "".join(f"{line}\n" for line in lines)
    write_atomic(folder / FILE, text.encode("utf-8", "surrogatepass"))


def read_answers(folder: Path) -> KeptAnswers:
    """Read `certified_answers.jsonl` from the folder of a result.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = folder / FILE
    if not path.exists():
        raise ModelError(
            f"'{folder}' holds no {FILE}, so there is nothing to verify\n"
            "write it again with prumux-opt, without --no-keep-answers"
        )
    try:
        text = path.read_bytes().decode("utf-8", "surrogatepass")
        # Not splitlines(): a JSON string may contain U+2028 and similar characters.
        first, *lines = text.removesuffix("\n").split("\n")
        facts = CertifiedFacts(**json.loads(first))
        return _kept(facts, [json.loads(line) for line in lines])
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ModelError(
            f"'{path}' is damaged: {type(error).__name__}: {error}\n"
            "copy the result again from where prumux-opt wrote it"
        ) from error


def _kept(facts: CertifiedFacts, rows: list[dict[str, Any]]) -> KeptAnswers:
    words = "words" in rows[0]
    logits = tuple(np.array(x["logits"], np.float32) for x in rows)
    ids, question = Ragged.of(x["ids"] for x in rows), None
    scored = tuple(_mask(x) for x in rows) if "scored" in rows[0] else None
    if "question" in rows[0]:
        question = tuple(int(x["question"]) for x in rows)
        rows = [x for i, x in enumerate(rows) if i == 0 or question[i] != question[i - 1]]
    return KeptAnswers(
        facts=facts,
        rows=Rows(
            text_a=() if words else tuple(x["text"] for x in rows),
            text_b=tuple(x["text_b"] for x in rows) if "text_b" in rows[0] else None,
            words=tuple(tuple(x["words"]) for x in rows) if words else None,
            groups=np.array([x["query"] for x in rows]) if "query" in rows[0] else None,
        ),
        ids=ids,
        logits=logits,
        references=tuple(x["reference"] for x in rows),
        scored=scored,
        question=question,
    )


def _mask(row: Mapping[str, Any]) -> NDArray[np.bool_]:
    mask = np.zeros(len(row["ids"]), dtype=np.bool_)
    mask[row["scored"]] = True
    return mask
