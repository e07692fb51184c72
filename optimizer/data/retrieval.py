"""Retrieval data: queries, documents and judgements, in the folders of BEIR.

`queries.jsonl` has the columns `_id` and `text`, and `corpus.jsonl` has `_id`, `text` and
`title`. `qrels/NAME.tsv` has one judgement a line: `query-id`, `corpus-id` and `score`.
Thakur et al. 2021, https://arxiv.org/abs/2104.08663
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.tasks.labels import integer
from prumux.optimizer.tasks.task import Task

from .formats import MIN_ROWS, ending_of, read_file
from .kept import missing
from .names import split_of
from .rows import Rows, Splits
from .table import Table

FIT_TEXTS = 20_000
"""Largest number of documents, and of train queries, for scores, refits and training."""
SELECT_QUERIES = 2048
SELECT_DOCUMENTS = 20_000
"""Number of documents on which candidates are compared, all judged ones included."""
CORPUS, QUERIES = "corpus.jsonl", "queries.jsonl"
_COLUMNS = {"_id", "text", "title", "query-id", "corpus-id", "score"}


def is_retrieval(folder: Path) -> bool:
    """True for a folder with queries and documents."""
    return (folder / CORPUS).is_file() and (folder / QUERIES).is_file()


@dataclass(frozen=True)
class Collection:
    """Texts by id, prompts included."""

    queries: Mapping[str, str]
    documents: Mapping[str, str]


def retrieval_splits(
    folder: Path, task: Task, seed: int = 0, validation: str | None = None
) -> Splits:
    """Read a folder of retrieval data and give its queries their roles.

    - certify and test: the queries of `validation` and `test`
    - select: queries of `train`; without that split, a third of the validation queries
    - fit: documents and the other train queries, as texts without labels

    All roles search the same corpus, which is reduced for `select` if it is large.

    Args:
        folder: see `is_retrieval`.
        task: adds the prompts of queries and documents.
        seed: the seed for drawing queries and documents.
        validation: `test` = the queries of the test split certify.

    Raises:
        DataError: a file is missing or wrong, or a role has fewer than 8 queries.
    """
    made = Collection(_texts(folder / QUERIES, task), _texts(folder / CORPUS, task))
    files = _judgements(folder)
    notes: list[str] = []
    if validation == "test" and "test" in files:
        files["validation"] = files.pop("test")
        notes.append("the queries of the test split certify, as --validation test says")
    if "validation" not in files:
        has = ", ".join(files) or "no judgements (qrels/validation.tsv)"
        cure = "; or those of the test split: --validation test" if "test" in files else ""
        raise DataError(
            f"{folder} has no validation queries to certify on, only: {has}\n"
            f"add qrels/validation.tsv, with queries that the model was not trained on{cure}"
        )
    warnings: list[str] = []
    rows = {k: _queries(k, v, made, warnings) for k, v in files.items()}
    certify, spare = rows["validation"], list[str]()
    if "train" in rows:
        pool = rows["train"]
        order = _order(pool.text_a, seed)
        select = pool.take(order[:SELECT_QUERIES])
        spare = [pool.text_a[i] for i in order[SELECT_QUERIES:]]
        notes.append(f"select: {len(select)} random queries of train ({len(pool)})")
    else:
        order = _order(certify.text_a, seed)
        third = len(order) // 3
        select, certify = certify.take(order[:third]), certify.take(sorted(order[third:]))
        notes.append("select and certify: a third and two thirds of the validation queries")
    documents = [*made.documents.values()]
    fit = [documents[i] for i in _order(documents, seed)[:FIT_TEXTS]] + spare[:FIT_TEXTS]
    notes += [
        f"fit: {len(fit)} documents and train queries, without labels",
        f"certify: {len(certify)} queries over {len(documents)} documents",
    ]
    select = _fewer_documents(select, seed, notes)
    test = rows.get("test")
    for role, found in {"select": select, "certify": certify, "test": test}.items():
        if found is not None and len(found) < MIN_ROWS:
            raise DataError(
                f"{role} has {len(found)} queries, {MIN_ROWS} are needed: give more data\n"
                f"({'; '.join(notes)})"
            )
    return Splits(Rows(tuple(fit)), select, certify, test, tuple(notes), tuple(warnings))


def _texts(path: Path, task: Task) -> dict[str, str]:
    """Texts by id. The text of a document begins with its title."""
    table = read_file(path, _COLUMNS)
    ids, texts = _column(table, "_id"), _column(table, "text")
    titles = table.columns.get("title") or [None] * table.rows
    joined = []
    for i, (text, title) in enumerate(zip(texts, titles, strict=True)):
        parts = [x for x in (title, text) if not missing(x)]
        if not parts or not all(isinstance(x, str) for x in parts):
            table.fail(i, f"'text' is {text!r:.40}, not a text: mend or remove the row")
        joined.append(" ".join(str(x).strip() for x in parts))
    kind = "document" if path.name == CORPUS else "query"
    found = dict(
        zip(map(str, ids), task.prompted(joined, kind), strict=True)  # type: ignore[arg-type]
    )
    if len(found) < table.rows:
        table.fail(None, f"{table.rows - len(found)} ids occur twice: keep each once")
    return found


def _column(table: Table, name: str) -> Sequence[object]:
    if name not in table.columns:
        table.fail(None, f"no column '{name}'; the columns are: {', '.join(table.names)}")
    return table.columns[name]


def _judgements(folder: Path) -> dict[str, Path]:
    """The file of judgements of each split."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("qrels/*")):
        split = split_of(path.name.partition(".")[0])
        if split is not None and ending_of(path):
            if split in found:
                raise DataError(f"{found[split]} and {path} are both of {split}: keep one")
            found[split] = path
    return found


def _queries(split: str, path: Path, made: Collection, warnings: list[str]) -> Rows:
    """The queries of one split with their judgements, int64 [Q, R, 2]."""
    table = read_file(path, _COLUMNS)
    columns = [_column(table, x) for x in ("query-id", "corpus-id", "score")]
    numbers = {x: i for i, x in enumerate(made.documents)}
    judged: dict[str, dict[int, int]] = {}
    lost = 0
    for i, (query, document, score) in enumerate(zip(*columns, strict=True)):
        grade = integer(score)
        if grade is None:
            table.fail(i, f"score {score!r:.40} is not a whole number: mend the row")
        if str(query) not in made.queries or str(document) not in numbers:
            lost += 1
        elif grade > 0:
            judged.setdefault(str(query), {})[numbers[str(document)]] = grade
    if lost:
        warnings.append(
            f"{path}: {lost} judgements name a query or document that is not there"
        )
    if not judged:
        table.fail(None, "no query has a document of a score above 0")
    most = max(map(len, judged.values()))
    labels = np.full((len(judged), most, 2), -1, dtype=np.int64)
    for i, grades in enumerate(judged.values()):
        labels[i, : len(grades)] = [*grades.items()]
    own = tuple(numbers.get(x, -1) for x in judged)
    return Rows(
        tuple(made.queries[x] for x in judged),
        labels=labels,
        corpus=tuple(made.documents.values()),
        own=own if any(x >= 0 for x in own) else (),
    )


def _order(texts: Sequence[str], seed: int) -> list[int]:
    hashes = [hashlib.sha256(f"{seed} {x}".encode()).digest() for x in texts]
    return sorted(range(len(hashes)), key=hashes.__getitem__)


def _fewer_documents(rows: Rows, seed: int, notes: list[str]) -> Rows:
    """Reduce the corpus to `SELECT_DOCUMENTS`: all judged documents and random ones."""
    assert rows.corpus is not None
    if len(rows.corpus) <= SELECT_DOCUMENTS:
        return rows
    labels: NDArray[np.int64] = np.asarray(rows.labels)
    needed = {*labels[..., 0][labels[..., 0] >= 0].tolist(), *(x for x in rows.own if x >= 0)}
    order = [*needed, *(i for i in _order(rows.corpus, seed) if i not in needed)]
    kept = sorted(order[: max(SELECT_DOCUMENTS, len(needed))])
    numbers = np.full(len(rows.corpus) + 1, -1, dtype=np.int64)  # the last entry maps -1 to -1
    numbers[kept] = np.arange(len(kept))
    moved = np.stack([numbers[labels[..., 0]], labels[..., 1]], -1)
    notes.append(f"select: {len(kept)} documents, those that are judged among them")
    return replace(
        rows,
        labels=moved,
        corpus=tuple(rows.corpus[i] for i in kept),
        own=tuple(int(numbers[x]) for x in rows.own),
    )
