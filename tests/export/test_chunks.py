"""Many texts run in chunks: the same answers, in the order of the texts."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import prumux
from prumux.export.onnx import Onnx
from prumux.export.runtime import chunks
from prumux.export.runtime.chunks import answer_chunks, by_letters
from prumux.export.runtime.predictor import Predictor, leaves_cores
from prumux.optimizer.base.errors import DataError
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.rows import Rows
from prumux.optimizer.data.tokenize import Encoded, block, collate, encode
from prumux.optimizer.model.artifact import save_artifact
from tests.helpers.factory import make_context, multiplexed, random_model, tiny_tokenizer
from tests.helpers.jobs import texts


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "CHUNK_ROWS", 20)


@pytest.fixture(scope="module", params=[1, 3])
def predictor(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("chunks")
    model = random_model(heads=(4, 4))
    model = multiplexed(model, n=request.param) if request.param > 1 else model
    model = replace(model, tokenizer=tiny_tokenizer())
    save_artifact(model, folder)
    Onnx(fusion="none").emit(model, make_context(model), folder)
    return prumux.load(folder, threads=1)


def lengths_differ(count: int) -> list[str]:
    given = texts(count, seed=1)
    return [" ".join([x] * (1 + i % 3)) for i, x in enumerate(given)]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("count", [0, 1, 20, 21, 97])
def test_as_one_by_one(predictor: Predictor, overlap: bool, count: int) -> None:
    given = lengths_differ(count)
    every = replace(predictor, overlap=overlap)
    logits = every.predict_logits(given, batch_size=8)
    assert logits.shape == (count, predictor.encoder.labels)  # type: ignore[union-attr]
    if predictor.encoder.slots == 1:
        alone = [predictor.predict_logits([x])[0] for x in given]
        np.testing.assert_allclose(logits, np.reshape(alone, logits.shape), atol=1e-5)  # type: ignore[union-attr]
    again = replace(predictor, overlap=not overlap).predict_logits(given, batch_size=8)
    np.testing.assert_array_equal(again, logits)


def test_pairs_keep_together(predictor: Predictor) -> None:
    pairs = list(zip(lengths_differ(50), reversed(lengths_differ(50)), strict=True))
    found = predictor.predict_logits(pairs)
    assert len(found) == 50
    if predictor.encoder.slots == 1:
        alone = [predictor.predict_logits([x])[0] for x in pairs]
        np.testing.assert_allclose(found, alone, atol=1e-5)


def test_chunks_hold_rows_of_like_length_and_whole_batches() -> None:
    rows = Rows(tuple(lengths_differ(97)))
    seen: list[int] = []
    encoder = random_model(heads=(4, 4)).encoder

    def run(coded: Encoded) -> Any:
        seen.append(len(coded))
        ids = coded.ids
        return np.array([[len(x), int(x.sum())] for x in ids], dtype=np.float32)

    def code(some: Rows) -> Encoded:
        return encode(some, tiny_tokenizer(), encoder)

    found = np.asarray(answer_chunks(rows, 8, code, run, overlap=True))
    assert seen == [16] * 6 + [1]
    expected = [[len(x), int(x.sum())] for x in code(rows).ids]
    assert found.tolist() == expected


def test_a_pair_is_as_long_as_both_texts() -> None:
    rows = Rows(("a", "bbbb", "cc"), ("aaaaaa", "b", "c"))
    assert by_letters(rows).tolist() == [2, 1, 0]


def test_the_next_chunk_is_tokenized_while_this_one_runs() -> None:
    """Each side waits for the other, so neither would end without overlap."""
    second, running = threading.Event(), threading.Event()
    main = threading.current_thread()

    def code(rows: Rows) -> Encoded:
        if rows.text_a[0].startswith("bb"):
            assert running.wait(20)
            second.set()
        assert threading.current_thread() is not main
        return Encoded(Ragged.of([[1]] * len(rows)), None, None, 0)

    def run(coded: Encoded) -> Any:
        running.set()
        assert second.wait(20)
        return np.zeros((len(coded), 2), np.float32)

    rows = Rows(("a",) * 20 + ("bb",) * 20)
    assert len(answer_chunks(rows, 1, code, run, overlap=True)) == 40


@pytest.mark.parametrize("overlap", [False, True])
def test_a_row_that_fails_is_named_by_its_own_number(overlap: bool) -> None:
    def code(rows: Rows) -> Encoded:
        bad = [i for i, x in enumerate(rows.text_a) if x == "bad"]
        if bad:
            raise DataError(f"row {bad[0] + 1} has no tokens")
        return Encoded(Ragged.of([[1]] * len(rows)), None, None, 0)

    rows = Rows(tuple(["a good text"] * 30 + ["bad"] + ["a good text"] * 30))
    with pytest.raises(DataError, match="row 31 has no tokens"):
        answer_chunks(
            rows, 1, code, lambda x: np.zeros((len(x), 2), np.float32), overlap=overlap
        )


def test_cores_are_left_by_few_threads_and_by_gpus(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prumux.export.runtime.predictor.cpu_threads", lambda: 4)
    engine = predictor.engine
    assert not leaves_cores(engine, None)
    assert not leaves_cores(engine, 4)
    assert leaves_cores(engine, 3)
    monkeypatch.setattr(type(engine), "describe", lambda _: {"device": "gpu"})
    assert leaves_cores(engine, None)


def test_a_block_of_neighbours_is_a_batch() -> None:
    encoder = random_model(heads=(4, 4)).encoder
    for second in (None, tuple(lengths_differ(9))):
        coded = encode(Rows(tuple(lengths_differ(9)), second), tiny_tokenizer(), encoder)
        for start, stop in ((0, 9), (2, 5), (8, 9)):
            expected = collate(coded, np.arange(start, stop)).inputs()
            found = block(coded, start, stop)
            assert list(found) == list(expected)
            for name, value in expected.items():
                np.testing.assert_array_equal(found[name], value)
                assert found[name].dtype == value.dtype
