"""Serving mixed rows: grouping, copies, tenants, and many callers at once."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from prumux.export.onnx import Onnx
from prumux.export.runtime.grouping import BatchingRunner
from prumux.export.runtime.predict_arguments import owners_of
from prumux.export.runtime.predictor import Predictor, load
from prumux.optimizer.base.errors import UsageError
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.model.artifact import save_artifact
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.row_groups import filled, grouped
from prumux.optimizer.pipeline.target import Engine
from tests.helpers.factory import Kind, make_context, multiplexed, random_model, tiny_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


def mixed_model(n: int = 3, task: Kind = "text-classification") -> Model:
    model = random_model(heads=(4, 4), hidden=16, labels=3, task=task)
    return replace(multiplexed(model, n=n, at=1), tokenizer=tiny_tokenizer())


def emit(model: Model, folder: Path) -> Path:
    save_artifact(model, folder)
    Onnx(fusion="none").emit(model, make_context(model), folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return emit(mixed_model(), tmp_path_factory.mktemp("mixed"))


class Recorder:
    """An engine that remembers what it ran."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.seen: list[tuple[dict[str, NDArray[Any]], NDArray[Any]]] = []

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        found = self.engine.run(inputs)
        self.seen.append((dict(inputs), found))
        return found

    def describe(self) -> Mapping[str, str]:
        return self.engine.describe()


def recorded(predictor: Predictor) -> tuple[Predictor, Recorder]:
    recorder = Recorder(predictor.engine)
    return replace(predictor, runner=replace(predictor.runner, engine=recorder)), recorder


@given(
    lengths=st.lists(st.integers(1, 9), max_size=40),
    n=st.integers(1, 6),
    data=st.data(),
)
def test_groups_hold_every_row_in_as_many_slots_as_asked(
    lengths: list[int], n: int, data: st.DataObject
) -> None:
    copies = data.draw(st.integers(1, n))
    tenants = data.draw(st.lists(st.sampled_from("xyz"), min_size=len(lengths),
                                 max_size=len(lengths)))  # fmt: skip
    groups = grouped(np.array(lengths, dtype=np.int64), n, copies, tenants)
    assert groups.shape[1] == n
    rows = groups.ravel()
    assert set(rows) == set(range(len(lengths)))
    slots = defaultdict(set)
    for group in groups:
        assert len({tenants[i] for i in group}) == 1
        for slot, row in enumerate(group):
            slots[row].add(slot)
    assert all(len(x) >= copies for x in slots.values())
    longest = [max(lengths[i] for i in group) for group in groups]
    assert longest == sorted(longest)


@given(rows=st.integers(0, 30), n=st.integers(1, 7))
def test_filler_comes_from_the_last_group(rows: int, n: int) -> None:
    index = filled(rows, n)
    assert len(index) % n == 0
    assert list(index[:rows]) == list(range(rows))
    assert set(index[rows:]) <= set(range(rows // n * n, rows))


def test_answers_come_back_in_order(folder: Path) -> None:
    predictor = load(folder, threads=1)
    texts = [" ".join(LETTERS[: 1 + i % 7]) for i in range(11)]
    found = predictor.predict_logits(texts, batch_size=6)
    again = predictor.predict_logits(texts, batch_size=600)
    np.testing.assert_allclose(found, again, atol=1e-5)
    assert np.asarray(found).shape == (11, 3)
    assert predictor.predict([]) == []
    # A text alone fills its own group, and is what n copies of it are.
    alone = predictor.predict_logits(["good film"])
    copies = predictor.predict_logits(["good film"] * 3)
    np.testing.assert_allclose(np.mean(copies, axis=0), alone[0], atol=1e-5)


def test_copies_average_over_slots_and_partners(folder: Path) -> None:
    predictor, recorder = recorded(load(folder, threads=1))
    texts = [f"{a} {b}" for a in LETTERS[:6] for b in LETTERS[:4]]
    predictor.predict_logits(texts)
    rows = sum(len(x["input_ids"]) for x, _ in recorder.seen)
    recorder.seen.clear()
    found = predictor.predict_logits(texts, copies=3)
    assert rows == 24
    assert sum(len(x["input_ids"]) for x, _ in recorder.seen) == 3 * 24 + 2 * 3
    by_ids = defaultdict(list)
    for inputs, logits in recorder.seen:
        for ids, row in zip(inputs["input_ids"], logits, strict=True):
            by_ids[tuple(ids)].append(row)
    means = np.array([np.mean(x, axis=0) for x in by_ids.values()])
    for row in found:
        assert np.abs(means - row).max(1).min() < 1e-5


@pytest.mark.slow
def test_concurrent_callers_get_their_own_answers(folder: Path) -> None:
    """64 callers, 10,000 distinct texts, three tenants whose rows are never mixed."""
    predictor, recorder = recorded(load(folder, threads=1, max_wait_ms=2))
    texts = [
        f"{'xyz'[i % 3]} {LETTERS[i % 26]} {LETTERS[i // 26 % 26]} {LETTERS[i // 676]}"
        for i in range(10_000)
    ]
    assert len(set(texts)) == len(texts)
    calls = [list(range(i, min(i + 1 + i % 5, 10_000))) for i in _starts(10_000)]

    def ask(call: list[int]) -> Any:
        rows = [texts[i] for i in call]
        return predictor.predict_logits(rows, isolate=[text[0] for text in rows])

    with ThreadPoolExecutor(64) as pool:
        found = list(pool.map(ask, calls))
    predictor.close()
    coded = predictor._encode(Rows(tuple(texts)))
    expected = defaultdict(list)
    for inputs, logits in recorder.seen:
        again = recorder.engine.run(inputs)  # the same grouping, one after the other
        np.testing.assert_array_equal(again, logits)
        assert len(logits) % 3 == 0
        owners = inputs["input_ids"][:, 1].reshape(-1, 3)  # the text's first token
        assert (owners == owners[:, :1]).all()
        for ids, mask, row in zip(
            inputs["input_ids"], inputs["attention_mask"], logits, strict=True
        ):
            expected[tuple(ids[mask == 1])].append(row)
    assert len(expected) == 10_000
    assert max(map(len, expected.values())) <= 3, "only filler is run twice"
    for call, rows in zip(calls, found, strict=True):
        for i, row in zip(call, rows, strict=True):
            own = expected[tuple(coded.ids[i])]
            np.testing.assert_allclose(row, np.mean(own, axis=0), atol=1e-5)
    assert len(recorder.seen) < len(calls), "callers are run together"


def _starts(total: int) -> list[int]:
    """Where calls of 1 to 5 texts start, so that they follow each other."""
    found, at = [], 0
    while at < total:
        found.append(at)
        at += 1 + at % 5
    return found


def test_an_error_of_the_engine_reaches_the_callers_and_serving_goes_on(folder: Path) -> None:
    predictor = load(folder, threads=1, max_wait_ms=50)

    class Broken(Recorder):
        failing = True

        def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            if self.failing:
                raise RuntimeError("out of order")
            return super().run(inputs)

    engine = Broken(predictor.engine)
    predictor = replace(predictor, runner=BatchingRunner(engine, 3, 50))
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(predictor.predict, ["good film"]) for _ in range(2)]
        for future in futures:
            with pytest.raises(RuntimeError, match="out of order"):
                future.result()
    engine.failing = False
    assert len(predictor.predict(["good film"])) == 1
    predictor.close()
    assert len(predictor.predict(["bad film"])) == 1, "close does not forbid more"
    predictor.close()
    predictor.close()


def test_words_of_taggers(tmp_path: Path) -> None:
    model = mixed_model(n=2, task="token-classification")
    predictor = load(emit(model, tmp_path), threads=1)
    rows = [["good", "film"], [], ["a", "bad", "play"], ["film"] * 50]
    found = predictor.predict(rows, copies=2, isolate=["x", "x", "y", "y"])
    assert [len(x) for x in found] == [2, 0, 3, 50]  # type: ignore[arg-type]


def test_what_is_refused(folder: Path) -> None:
    predictor = load(folder, threads=1)
    with pytest.raises(UsageError, match=r"copies is 4: this model mixes 3 rows, use 1\.\.3"):
        predictor.predict(["good"], copies=4)
    with pytest.raises(UsageError, match="isolate names 2 owners of 1 texts: give one for ea"):
        predictor.predict(["good"], isolate=["a", "b"])
    with pytest.raises(UsageError, match=r"isolate holds \[1\]: name owners by texts or numb"):
        predictor.predict(["good"], isolate=[[1]])  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"max_wait_ms is -1: use 0\.\.60000, or leave it"):
        load(folder, max_wait_ms=-1)


@pytest.mark.parametrize(
    ("isolate", "what"),
    [
        ((x for x in "ab"), "generator"),
        (map(str, (1, 2)), "map"),
        (iter(["a", "b"]), "list_iterator"),
        ({1: "a", 2: "b"}.values(), "dict_values"),
        (frozenset("ab"), "frozenset"),
        ({}, "dict"),
    ],
)
def test_owners_that_are_no_list_are_not_one_owner(isolate: Any, what: str) -> None:
    message = rf"isolate is a {what}: give a list, isolate=list\(\.\.\.\)"
    with pytest.raises(UsageError, match=message):
        owners_of(isolate, ["good", "bad"])


def test_owners_in_arrays_are_those_of_lists() -> None:
    texts, names = ["good", "bad", "film"], ["a", "b", "a"]
    assert owners_of(np.array(names), texts) == owners_of(names, texts)
    assert owners_of(np.array([1, 2, 1]), texts) == owners_of([1, 2, 1], texts)
    assert owners_of("ab", texts) == owners_of(np.str_("ab"), texts) == ((str, "ab"),) * 3
    with pytest.raises(UsageError, match="isolate names 2 owners of 3 texts"):
        owners_of(np.array(["a", "b"]), texts)


@pytest.mark.parametrize("isolate", [math.nan, [math.nan, "a"], np.array([math.nan, 1.0])])
def test_an_owner_that_is_not_itself(isolate: Any) -> None:
    with pytest.raises(UsageError, match="isolate holds nan, which is not equal to itself"):
        owners_of(isolate, ["good", "bad"])
