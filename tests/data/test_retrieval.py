"""Queries, documents and judgements in the folders of BEIR."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data import retrieval
from prumux.optimizer.data.rows import Rows, Splits
from prumux.optimizer.data.splits import load_splits
from prumux.optimizer.tasks.embedding import SentenceEmbedding
from tests.helpers.datafiles import TASK as CLASSES
from tests.helpers.datafiles import write

TASK = SentenceEmbedding((), (("query", "q: "), ("document", "d: ")))
DOCUMENTS, EACH = 60, 30


def folder_of(folder: Path, *splits: str) -> Path:
    """Query i is answered by document i with grade 2 and i + 1 with grade 1."""
    numbers = range(DOCUMENTS)
    write(
        folder / "corpus.jsonl",
        _id=[f"d{i}" for i in numbers],
        title=[f"title {i}" if i % 2 else "" for i in numbers],
        text=[f"document {i}" for i in numbers],
    )
    ids = range(EACH * len(splits))
    write(folder / "queries.jsonl", _id=[f"q{i}" for i in ids], text=[f"ask {i}" for i in ids])
    for number, split in enumerate(splits):
        rows = [x for x in ids if x // EACH == number]
        columns: dict[str, list[Any]] = {
            "query-id": [f"q{i}" for i in rows for _ in range(3)],
            "corpus-id": [f"d{(i + x) % DOCUMENTS}" for i in rows for x in range(3)],
            "score": [2, 1, 0] * len(rows),
        }
        write(folder / "qrels" / f"{split}.tsv", **columns)
    return folder


def read(folder: Path, **options: Any) -> Splits:
    given = {"train": None, "validation": None, "test": None, "beside": None} | options
    return load_splits(str(folder), task=given.pop("task", TASK), **given)


def judged(rows: Rows, i: int) -> dict[str, int]:
    """The judged documents of a query, by text."""
    assert rows.corpus is not None
    assert isinstance(rows.labels, np.ndarray)
    return {rows.corpus[d]: int(grade) for d, grade in rows.labels[i] if d >= 0}


def test_queries_get_their_roles(tmp_path: Path) -> None:
    splits = read(folder_of(tmp_path, "train", "dev", "test"))
    assert splits.test is not None
    for rows, start in ((splits.select, 0), (splits.certify, EACH), (splits.test, 2 * EACH)):
        assert len(rows) == EACH
        numbers = [int(x.removeprefix("q: ask ")) for x in rows.text_a]
        assert sorted(numbers) == list(range(start, start + EACH))
        for i, n in enumerate(numbers):
            grades = judged(rows, i)
            assert sorted(grades.values()) == [1, 2]
            best = max(grades, key=grades.__getitem__)
            title = f"title {n % DOCUMENTS} " if n % 2 else ""
            assert best == f"d: {title}document {n % DOCUMENTS}"
    assert splits.fit.labels is None
    assert splits.fit.corpus is None
    assert set(splits.certify.corpus or ()) <= {*splits.fit.text_a}
    assert splits.certify.take([3]).corpus == splits.certify.corpus
    other = read(folder_of(tmp_path / "b", "train", "dev", "test"), seed=1)
    assert splits.digest() != other.digest()


def test_without_train_queries_a_third_selects(tmp_path: Path) -> None:
    splits = read(folder_of(tmp_path, "validation"))
    assert (len(splits.select), len(splits.certify), splits.test) == (10, 20, None)
    assert not {*splits.select.text_a} & {*splits.certify.text_a}


def test_test_queries_certify_when_asked(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "test")
    with pytest.raises(DataError, match=r"only: test\n.*--validation test"):
        read(folder)
    splits = read(folder, validation="test")
    assert (len(splits.certify), splits.test) == (20, None)


def test_a_large_corpus_is_smaller_for_candidates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrieval, "SELECT_DOCUMENTS", 40)
    monkeypatch.setattr(retrieval, "FIT_TEXTS", 25)
    whole = read(folder_of(tmp_path, "train", "dev"))
    assert len(whole.select.corpus or ()) == 40
    assert len(whole.certify.corpus or ()) == DOCUMENTS
    assert len(whole.fit) == 25
    for i, query in enumerate(whole.select.text_a):
        n = int(query.removeprefix("q: ask "))
        assert {x.rpartition(" ")[2] for x in judged(whole.select, i)} == {str(n), str(n + 1)}
    assert any("40 documents" in x for x in whole.notes)


def test_a_query_that_is_a_document_is_known(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "train", "dev")
    text = (folder / "corpus.jsonl").read_text().replace('"d45"', '"q45"')
    (folder / "corpus.jsonl").write_text(text)
    splits = read(folder)
    at = splits.certify.text_a.index("q: ask 45")
    assert splits.certify.own[at] == 45
    assert sum(x >= 0 for x in splits.certify.own) == 1
    assert splits.select.own == ()
    assert any("name a query or document that is not there" in x for x in splits.warnings)


def line(path: Path, number: int, **values: Any) -> None:
    lines = path.read_text().splitlines()
    lines[number] = json.dumps(json.loads(lines[number]) | values)
    path.write_text("\n".join(lines))


def judgement(score: Any) -> dict[str, list[Any]]:
    return {"query-id": ["q0"], "corpus-id": ["d0"], "score": [score]}


BAD: dict[str, tuple[Callable[[Path], Any], str]] = {
    "twice": (lambda x: line(x / "corpus.jsonl", 3, _id="d4"), "1 ids occur twice"),
    "no text": (
        lambda x: line(x / "corpus.jsonl", 4, text=None),
        "row 5: 'text' is None, not a text",
    ),
    "number": (
        lambda x: line(x / "queries.jsonl", 0, text=7),
        "row 1: 'text' is 7, not a text",
    ),
    "score": (
        lambda x: write(
            x / "qrels" / "dev.tsv",
            **judgement("good"),
        ),
        "score 'good' is not a whole number",
    ),
    "column": (
        lambda x: write(x / "qrels" / "dev.tsv", query=["q0"], document=["d0"]),
        "no column 'query-id'; the columns are: query, document",
    ),
    "nothing relevant": (
        lambda x: write(
            x / "qrels" / "dev.tsv",
            **judgement(0),
        ),
        "no query has a document of a score above 0",
    ),
    "few": (
        lambda x: write(
            x / "qrels" / "dev.tsv",
            **judgement(1),
        ),
        "certify has 1 queries, 8 are needed",
    ),
    "two": (
        lambda x: write(x / "qrels" / "valid.tsv", **{"query-id": ["q0"]}),
        "are both of validation: keep one",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_read_is_said(case: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "train", "dev")
    damage, message = BAD[case]
    damage(folder)
    with pytest.raises(DataError, match=message):
        read(folder)


def test_other_files_do_not_go_with_such_a_folder(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "dev")
    with pytest.raises(DataError, match="whose splits are in qrels/"):
        read(folder, train="x.csv")
    with pytest.raises(DataError, match="holds no data"):
        read(folder, task=CLASSES)  # a classifier reads no such folder
