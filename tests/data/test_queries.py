"""Rows of queries: which columns say so, and that no query is in two roles."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.rows import Rows, Splits, read_rows
from prumux.optimizer.tasks.classification import Classification
from prumux.optimizer.tasks.ranking import Ranking
from prumux.optimizer.tasks.regression import Regression
from tests.data.test_splits import load
from tests.helpers.datafiles import FORMATS, write

TASK = Ranking(("score",))
SCORE = Regression(("score",))


def columns(queries: int, name: str = "q", passages: int = 6) -> dict[str, list[Any]]:
    """Queries with the first passage relevant, in mixed order."""
    rows = [
        (i, f"{name} {i}", f"passage {name} {i} {j}", int(j == 0))
        for i in range(queries)
        for j in range(passages)
    ]
    mixed = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    ids, texts, others, grades = zip(*mixed, strict=True)
    return {"qid": [*ids], "query": [*texts], "passage": [*others], "label": [*grades]}


def folder(path: Path, **changes: Any) -> Path:
    for name, queries in (("train", 80), ("validation", 40), ("test", 20)):
        write(path / f"{name}.jsonl", **(columns(queries, name) | changes))
    return path


def roles(splits: Splits) -> Iterator[Rows]:
    for rows in (splits.fit, splits.select, splits.certify, splits.test):
        assert rows is not None
        assert rows.groups is not None
        yield rows


@pytest.mark.parametrize("kind", FORMATS)
def test_queries_and_grades(tmp_path: Path, kind: str) -> None:
    given = columns(5)
    rows = read_rows(write(tmp_path / f"x.{kind}", **given), TASK)
    assert rows.text_a == tuple(given["query"])
    assert rows.text_b == tuple(given["passage"])
    assert rows.groups is not None
    assert [given["query"].index(x) for x in given["query"]] == [
        rows.groups.tolist().index(x) for x in rows.groups
    ]
    assert isinstance(rows.labels, np.ndarray)
    assert rows.labels.tolist() == [
        [g, y] for g, y in zip(rows.groups, given["label"], strict=True)
    ]
    assert rows.unused == ()


def test_the_text_is_the_query_where_no_column_numbers_it(tmp_path: Path) -> None:
    given = columns(5)
    del given["qid"]
    by_text = read_rows(write(tmp_path / "x.jsonl", **given), TASK)
    by_number = read_rows(write(tmp_path / "y.jsonl", **columns(5)), TASK)
    assert by_text.groups is not None
    assert by_number.groups is not None
    assert by_text.groups.tolist() == by_number.groups.tolist()
    file = write(tmp_path / "z.jsonl", **given, topic=columns(5)["qid"])
    named = read_rows(file, TASK, {"query_id": "topic"})
    assert named.groups is not None
    assert named.groups.tolist() == by_number.groups.tolist()
    assert named.digest() == by_text.digest()
    file = write(tmp_path / "w.jsonl", **given, qid=list(range(30)))
    ids = read_rows(file, Classification(("no", "yes")))
    assert (ids.groups, ids.unused) == (None, ("qid",))


def test_a_column_of_queries_names_the_task(tmp_path: Path) -> None:
    found = load(folder(tmp_path), task=SCORE)
    assert found.task == TASK
    (line,) = [x for x in found.notes if x.startswith("task: ")]
    assert line.endswith("with each other: --metric pearson")
    plain = load(tmp_path, task=SCORE, metric="pearson")
    assert plain.task == SCORE
    assert plain.fit.groups is None
    assert load(tmp_path, task=Classification(("no", "yes"))).fit.groups is None


def test_no_query_is_in_two_roles(tmp_path: Path) -> None:
    for files in (("train", "validation"), ("validation",)):
        place = tmp_path / "_".join(files)
        for name in files:
            write(place / f"{name}.jsonl", **columns(81, name))
        found = load(place, task=SCORE)
        texts = [set(x.text_a) for x in (found.fit, found.select, found.certify)]
        assert sum(map(len, texts)) == len(set().union(*texts)) == 81 * len(files)
        for rows in (found.fit, found.select, found.certify):
            assert len(rows) == 6 * len(set(rows.text_a)), "whole queries only"
            assert len(set(rows.text_a)) >= 18


def test_a_query_of_another_file_is_not_trained_on(tmp_path: Path) -> None:
    """The passages differ, and the numbers mean other queries in each file."""
    train, certify = columns(60, "train"), columns(40, "validation")
    for i, text in enumerate(train["query"]):
        train["query"][i] = text.replace("train 7", "validation 7")
    write(tmp_path / "train.jsonl", **train)
    write(tmp_path / "validation.jsonl", **certify)
    found = load(tmp_path, task=SCORE)
    assert not {*found.fit.text_a, *found.select.text_a} & {*found.certify.text_a}
    assert len(found.fit) + len(found.select) == 6 * 59
    assert any("their text is also in certify" in x for x in found.notes)


def test_queries_without_a_relevant_passage(tmp_path: Path) -> None:
    given = columns(30)
    for i, number in enumerate(given["qid"]):
        given["label"][i] *= number > 1
    rows = read_rows(write(tmp_path / "x.jsonl", **given), TASK)
    assert len(rows) == 28 * 6
    assert rows.skipped == "left out: 2 queries without a relevant passage (12 rows)"
    assert TASK.telling_rows(np.asarray(rows.labels)).all()


def test_hidden_grades_and_none(tmp_path: Path) -> None:
    hidden = read_rows(write(tmp_path / "x.jsonl", **columns(5) | {"label": [-1] * 30}), TASK)
    assert hidden.labels is None
    assert hidden.groups is not None
    with pytest.raises(DataError, match="column 'label': none of 30 passages is relevant"):
        read_rows(write(tmp_path / "y.jsonl", **columns(5) | {"label": [0] * 30}), TASK)
    with pytest.raises(DataError, match="row 2: 'qid' is empty: say which query"):
        read_rows(write(tmp_path / "z.jsonl", **columns(5) | {"qid": [1, None] * 15}), TASK)


def test_few_queries(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", **columns(60, "train"))
    write(tmp_path / "validation.jsonl", **columns(7))
    with pytest.raises(DataError, match="certify has 7 queries, 8 are needed"):
        load(tmp_path, task=SCORE)


def test_taking_rows_keeps_their_queries(tmp_path: Path) -> None:
    for rows in roles(load(folder(tmp_path), task=SCORE)):
        assert isinstance(rows.labels, np.ndarray)
        assert rows.groups is not None
        assert rows.labels[:, 0].tolist() == rows.groups.tolist()
        of = dict(zip(rows.groups, rows.text_a, strict=True))
        assert [of[g] for g in rows.groups] == [*rows.text_a]
