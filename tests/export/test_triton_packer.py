"""The packer of a Triton bundle mixes nobody up."""

from __future__ import annotations

import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prumux.export.runtime.grouping import PredictionJob
from prumux.export.runtime.grouping import answer as answer_job
from prumux.export.runtime.ort import OrtEngine
from prumux.export.triton.packer import parts
from prumux.optimizer.data.ragged import Ragged
from prumux.optimizer.data.tokenize import Encoded
from tests.helpers.tritonserver import Batcher, N, Request, Server, bundle, request, small


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(small(N), tmp_path_factory.mktemp("mixed"))


Asking = tuple[list[list[int]], list[str] | None]


def askings(count: int, seed: int = 0) -> list[Asking]:
    """Requests of 1 to 3 rows of several lengths; a third of them of no tenant."""
    random = np.random.default_rng(seed)
    found: list[Asking] = []
    for i in range(count):
        rows = [
            random.integers(1, 101, random.integers(1, 13)).tolist()
            for _ in range(random.integers(1, 4))
        ]
        found.append((rows, None if i % 3 == 0 else [f"tenant {i % 3}"] * len(rows)))
    return found


def by_predictor(
    server: Server, together: list[Asking], batch_size: int = 6
) -> list[NDArray[Any]]:
    """What our own predictor gives when it serves these requests as one job."""
    ids = tuple(tuple(row) for rows, _ in together for row in rows)
    tenants = tuple(x for rows, who in together for x in who or (None,) * len(rows))
    types = Ragged.of((0,) * len(x) for x in ids)
    encoded = Encoded(Ragged.of(ids), types, None, 0)
    engine = OrtEngine(server.folder / "prumux_engine" / "1" / "model.onnx", 1)
    logits = answer_job(engine, N, PredictionJob(encoded, batch_size, tenants=tenants))
    ends = np.cumsum([len(rows) for rows, _ in together])
    return [
        np.asarray(logits[end - len(rows) : end])
        for (rows, _), end in zip(together, ends, strict=True)
    ]


def test_requests_of_several_lengths_and_tenants(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(mixed)
    model = server.load(monkeypatch)
    asked = [x for x in askings(12) if x[1] is not None]
    found = model.execute([request(rows, who, width=15) for rows, who in asked])
    expected = by_predictor(server, asked)
    for response, logits in zip(found, expected, strict=True):
        assert not response.has_error()
        assert response.logits.dtype == np.float32
        np.testing.assert_array_equal(response.logits, logits)
    owner = {tuple(row): who[0] for rows, who in asked if who for row in rows}
    for inputs in server.runs:
        rows = zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        owners = [owner[tuple(ids[mask == 1].tolist())] for ids, mask in rows]
        groups = [owners[i : i + N] for i in range(0, len(owners), N)]
        assert all(len(set(group)) == 1 and len(group) == N for group in groups)


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_a_short_tail_is_filled_with_its_own_rows(
    mixed: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    server = Server(mixed)
    model = server.load(monkeypatch)
    ids = [[7 + i, 8, 9] for i in range(rows)]
    (found,) = model.execute([request(ids)])
    # The last group holds the rows that are left, over and over.
    filled = [i for group in ([0, 1, 2],) * (rows > 3) for i in group]
    tail = list(range(len(filled), rows))
    filled += [tail[i % len(tail)] for i in range(N)]
    logits = server.run(request([ids[i] for i in filled]).inputs)
    means = [
        logits[[at for at, i in enumerate(filled) if i == r]].mean(0) for r in range(rows)
    ]
    np.testing.assert_allclose(found.logits, means, atol=1e-6)


def test_one_bad_request_fails_alone(mixed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server(mixed, poison=100)
    model = server.load(monkeypatch)
    good = [([[5, 6, 7], [8, 9]], None), ([[11, 12]], None)]
    asked = [request(rows) for rows, _ in good]
    alone = [x.logits for x in model.execute(asked)]
    twisted = request([[1, 2]])
    twisted.inputs["attention_mask"] = np.ones((1, 3), np.int64)
    bad: list[tuple[Request, str]] = [
        (request([[5, 101]]), "input_ids go from 5 to 101, the model knows 0..100"),
        (request([[5, -1]]), "input_ids go from -1 to 5"),
        (request([[5] * 41]), "a row has 41 tokens, the model takes 40"),
        (twisted, r"inputs must be \[rows, tokens\], all alike; given: "),
        (request([[5], [6]], ["a"]), "1 tenants of 2 rows: give one a row"),
    ]
    for request_, message in bad:
        first, failed, second = model.execute([asked[0], request_, asked[1]])
        assert re.match(message, failed.error().message())
        np.testing.assert_array_equal(first.logits, alone[0])
        np.testing.assert_array_equal(second.logits, alone[1])
    # The engine breaks at a run that holds rows of all: each is run again by itself.
    first, failed, second = model.execute([asked[0], request([[100]]), asked[1]])
    assert "the engine broke" in failed.error().message()
    for response, case in ((first, good[0]), (second, good[1])):
        np.testing.assert_array_equal(response.logits, by_predictor(server, [case])[0])


def test_errors_have_the_codes_that_clients_need(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(mixed, poison=100)
    model = server.load(monkeypatch)
    gone = replace(request([[5, 6]]), cancelled=True)
    asked = [request([[5, 101]]), gone, request([[100]]), request([[7]])]
    *failed, good = model.execute(asked)
    codes = [x.error().code for x in failed]
    assert codes == ["invalid argument", "cancelled", "internal"]
    assert not good.has_error()
    assert all(5 not in x["input_ids"] for x in server.runs), "a cancelled row is not run"


def test_a_plain_engine_runs_rows_of_like_length_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(bundle(small(), tmp_path))
    config = tmp_path / "triton" / "prumux" / "config.pbtxt"
    text = config.read_text()
    assert 'key: "run_tokens"' in text
    config.write_text(text.replace('"512"', '"20"'))
    model = server.load(monkeypatch)
    lengths = [12, 2, 11, 1, 3, 12, 2, 4]
    asked = [request([list(range(20 + i, 20 + i + x))]) for i, x in enumerate(lengths)]
    found = model.execute(asked)
    assert [x["input_ids"].shape for x in server.runs] == [(5, 4), (3, 12)]
    for one, each in zip(asked, found, strict=True):
        np.testing.assert_allclose(each.logits, server.run(one.inputs), atol=1e-5)


def test_rows_are_run_in_parts_where_that_saves_padding() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        lengths = np.sort(random.integers(1, 129, random.integers(1, 33)))
        found = parts(lengths, 64.0)
        assert [i for start, end in found for i in range(start, end)] == list(
            range(len(lengths))
        )
        for start, end in found:
            for middle in range(start + 1, end):
                saved = (lengths[end - 1] - lengths[middle - 1]) * (middle - start)
                assert saved <= 64
        for (start, end), (_, last) in itertools.pairwise(found):
            assert (lengths[last - 1] - lengths[end - 1]) * (end - start) > 0


def test_a_row_without_tokens_harms_no_other(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Server(mixed).load(monkeypatch)
    empty = request([[5, 6]])
    empty.inputs["attention_mask"][:] = 0
    found = model.execute([request([[5, 6, 7]]), empty, request([[8, 9]])])
    assert all(np.isfinite(x.logits).all() for x in found)


def test_concurrent_callers_get_their_own_answers(
    mixed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(mixed)
    model = server.load(monkeypatch)
    asked = askings(300, seed=1)
    requests = [request(*x, width=i % 9) for i, x in enumerate(asked)]
    with Batcher(model, most=6) as batcher, ThreadPoolExecutor(16) as pool:
        found = list(pool.map(batcher.infer, requests))
    assert max(map(len, batcher.batches)) > 1, "requests must have met"
    # The same groups one after the other, with our own predictor.
    place = {id(x): i for i, x in enumerate(requests)}
    for batch in batcher.batches:
        at = [place[id(x)] for x in batch]
        expected = by_predictor(server, [asked[i] for i in at])
        for i, logits in zip(at, expected, strict=True):
            np.testing.assert_array_equal(found[i].logits, logits)


def test_tokens_are_tagged_at_the_places_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Server(bundle(small(N, "token-classification"), tmp_path))
    model = server.load(monkeypatch)
    rows = [[[5, 6, 7], [8, 9]], [[10]], [[11, 12, 13, 14]]]
    found = [x.logits for x in model.execute([request(x, width=5) for x in rows])]
    assert [x.shape for x in found] == [(2, 5, 3), (1, 5, 3), (1, 5, 3)]
    (inputs,) = server.runs
    assert inputs["input_ids"].shape == (6, 4)
    logits = server.run(inputs)
    for ids, got in [(row, x[i]) for case, x in zip(rows, found, strict=True)
                     for i, row in enumerate(case)]:  # fmt: skip
        same = [
            y[: len(ids)]
            for x, mask, y in zip(
                inputs["input_ids"], inputs["attention_mask"], logits, strict=True
            )
            if x[mask == 1].tolist() == ids
        ]
        np.testing.assert_allclose(got[: len(ids)], np.mean(same, axis=0), atol=1e-6)
        assert not got[len(ids) :].any()
