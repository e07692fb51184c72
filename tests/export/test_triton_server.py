"""A real Triton server on the repositories that prumux writes."""

from __future__ import annotations

import re
import shutil
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from prumux.export.graph import graph_file
from prumux.export.graph.graph import build
from prumux.export.runtime.ort import OrtEngine
from prumux.export.triton.client import TritonEngine
from prumux.export.triton.repository import write_bundle
from prumux.export.triton.server import MODULE, TritonServer, free_ports, main, serving
from prumux.optimizer.base.errors import MissingError, PrumuxError, UsageError
from prumux.optimizer.cli.console import guarded
from tests.helpers.triton_served import (
    SLOTS,
    TritonClient,
    alone,
    given,
    served_model,
    write_served,
)
from tests.helpers.tritonserver import needs_server, read_config


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One repository of all models; the space in its name is a part of the test."""
    together = tmp_path_factory.mktemp("all models")
    for name in SLOTS:
        for folder in write_served(name, tmp_path_factory.mktemp(name)).iterdir():
            if folder.is_dir():
                shutil.copytree(folder, together / folder.name)
    return together


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[TritonServer]:
    with serving(repository) as running:
        yield running


def counts(client: TritonClient, name: str) -> tuple[int, int]:
    """Rows that a model answered, and runs that it took."""
    (found,) = client.client.get_inference_statistics(name, as_json=True)["model_stats"]
    return int(found.get("inference_count", 0)), int(found.get("execution_count", 0))


def parameters(config: Any) -> dict[str, str]:
    return {name: x.string_value for name, x in config.parameters.items()}


@needs_server
def test_triton_reads_the_configurations_as_written(
    server: TritonServer, repository: Path
) -> None:
    with TritonClient(server, "grpc") as client:
        for name in SLOTS:
            for folder in (name, f"{name}_engine"):
                found = client.client.get_model_config(folder).config
                written = read_config(repository / folder)
                assert client.client.is_model_ready(folder)
                assert found.max_batch_size == written.max_batch_size == 9
                for part in ("input", "output", "model_warmup"):
                    assert str(getattr(found, part)) == str(getattr(written, part)), part
                assert parameters(found) == parameters(written)
                for instances, count in zip(
                    found.instance_group, (2 if folder == name else 1,), strict=True
                ):
                    assert instances.count == count
                batching = found.dynamic_batching
                assert batching.max_queue_delay_microseconds == 1000 * (folder == name)


@needs_server
@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("name", SLOTS)
def test_answers_are_those_of_the_predictor(
    server: TritonServer, repository: Path, name: str, kind: str
) -> None:
    with TritonClient(server, kind) as client:
        for rows in ([[5, 6, 7], [8, 9]], [[11]], [[x, 4, x] for x in range(5, 14)]):
            found = client.infer(name, given(name, rows, width=6))
            for row, logits in zip(found, alone(repository, name, rows), strict=True):
                own = row[: len(logits)] if logits.ndim > 1 else row
                np.testing.assert_allclose(own, logits, atol=1e-5)
                assert logits.ndim == 1 or not row[len(logits) :].any()
        tenants = ["a", "b"]
        first, second = client.infer(name, given(name, [[5, 6, 7], [8, 9]], tenants))
        for row, ids in ((first, [5, 6, 7]), (second, [8, 9])):
            (logits,) = alone(repository, name, [ids])
            own = row[: len(logits)] if logits.ndim > 1 else row
            np.testing.assert_allclose(own, logits, atol=1e-5)


@needs_server
def test_requests_of_unequal_length_are_run_together(
    server: TritonServer, repository: Path
) -> None:
    """Triton's own batcher would run these one by one."""
    asked = [[[3 + i, *range(4, 4 + i % 7)]] for i in range(64)]
    expected = [alone(repository, "plain", rows)[0] for rows in asked]
    with TritonClient(server, "grpc") as client, ThreadPoolExecutor(64) as pool:
        rows, runs = counts(client, "plain_engine")
        ask = lambda x: client.infer("plain", given("plain", x))  # noqa: E731
        found = list(pool.map(ask, asked))
        more_rows, more_runs = counts(client, "plain_engine")
    for got, logits in zip(found, expected, strict=True):
        np.testing.assert_allclose(got[0], logits, atol=1e-5)
    assert more_rows - rows == 64
    assert more_runs - runs <= 32, "requests must have met"


BROKEN: dict[str, tuple[dict[str, NDArray[Any]], str]] = {
    "dtype": (
        {k: x.astype(np.int32) for k, x in given("mixed", [[5, 6]]).items()},
        "data-type for .* is 'INT64', but .* 'INT32'|expects? .*INT64",
    ),
    "shapes": (
        given("mixed", [[5, 6]]) | {"attention_mask": np.ones((1, 3), np.int64)},
        r"inputs must be \[rows, tokens\], all alike",
    ),
    "rank": ({k: x[0] for k, x in given("mixed", [[5, 6]]).items()}, "unexpected shape"),
    "missing": (
        {k: x for k, x in given("mixed", [[5, 6]]).items() if k != "attention_mask"},
        "expected .* inputs but got|expected number of inputs|missing",
    ),
    "unknown id": (given("mixed", [[5, 101]]), "input_ids go from 5 to 101"),
    "negative id": (given("mixed", [[5, -1]]), "input_ids go from -1 to 5"),
    "too long": (given("mixed", [[5] * 41]), "a row has 41 tokens, the model takes 40"),
    "too many rows": (given("mixed", [[5]] * 10), "batch-size must be <= 9"),
    "no tokens": (given("mixed", [[]]), r"inputs must be \[rows, tokens\]|shape"),
    "no rows": (
        {k: x[:0] for k, x in given("mixed", [[5]]).items()},
        r"byte size mismatch .* Expected 8, got 0",
    ),
    "few tenants": (
        given("mixed", [[5], [6]]) | {"tenant": np.array([["a"]], object)},
        "1 tenants of 2 rows|batch",
    ),
}


@needs_server
@pytest.mark.parametrize("kind", ["http", "grpc"])
@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_request_fails_alone(
    server: TritonServer, repository: Path, case: str, kind: str
) -> None:
    from tritonclient.utils import InferenceServerException

    broken, message = BROKEN[case]
    good = given("mixed", [[5, 6, 7], [8, 9]])
    expected = alone(repository, "mixed", [[5, 6, 7], [8, 9]])
    with (
        TritonClient(server, "grpc") as others,
        TritonClient(server, kind) as client,
        ThreadPoolExecutor(4) as pool,
    ):
        going = [pool.submit(others.infer, "mixed", good | tenant(i)) for i in range(4)]
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer("mixed", broken)
        assert caught.value.status() in ("400", "StatusCode.INVALID_ARGUMENT")
        for each in going:
            np.testing.assert_allclose(each.result(), expected, atol=1e-5)


def tenant(number: int) -> dict[str, NDArray[Any]]:
    return {"tenant": np.array([[f"tenant {number}"]] * 2, dtype=object)}


@needs_server
def test_cancelled_requests_leave_the_others_alone(
    server: TritonServer, repository: Path
) -> None:
    from tritonclient.utils import InferenceServerException

    rows = [[5, 6, 7], [8, 9]]
    expected = alone(repository, "mixed", rows)
    found: list[Any] = []
    with TritonClient(server, "grpc") as client, ThreadPoolExecutor(8) as pool:
        inputs = client.inputs(given("mixed", [[x] for x in range(5, 14)]))
        going = []
        for number in range(40):
            call = client.client.async_infer(
                "mixed", inputs, lambda result, error: found.append(error or result)
            )
            going.append(
                pool.submit(client.infer, "mixed", given("mixed", rows) | tenant(number))
            )
            if number % 2:
                call.cancel()
        for each in going:
            np.testing.assert_allclose(each.result(), expected, atol=1e-5)
        end = time.monotonic() + 20
        while len(found) < 40 and time.monotonic() < end:
            time.sleep(0.01)
    assert len(found) == 40
    errors = [x for x in found if isinstance(x, InferenceServerException)]
    assert errors, "some must have been cancelled in time"
    assert {x.status() for x in errors} == {"StatusCode.CANCELLED"}


@needs_server
@pytest.mark.parametrize("name", SLOTS)
def test_the_engine_can_be_asked_without_its_packer(
    server: TritonServer, repository: Path, name: str
) -> None:
    served = TritonEngine(server.http, SLOTS[name], name)
    rows = [[5 + i, *range(4, 4 + i % 7)] for i in range(20)]
    inputs = given(name, rows, width=8)
    expected = OrtEngine(repository / f"{name}_engine" / "1" / "model.onnx", 1).run(inputs)
    np.testing.assert_allclose(served.run(inputs), expected, atol=1e-5)
    assert served.names == tuple(inputs)
    assert served.describe()["backend"] == "python"
    broken = {k: x.copy() for k, x in inputs.items()}
    broken["input_ids"][0, 0] = 10**6
    with pytest.raises(PrumuxError, match=rf"{name}_engine/infer' answers 500: .*indices"):
        served.run(broken)
    with pytest.raises(UsageError, match=r"other_engine/config' answers 404: .*unknown model"):
        TritonEngine(server.http, 1, "other")


def test_a_server_that_is_not_there_is_said() -> None:
    with pytest.raises(
        MissingError, match=r"no Triton server answers at 'http://127\.0\.0\.1"
    ):
        TritonEngine(f"127.0.0.1:{free_ports().http}")
    with pytest.raises(MissingError, match=r"no Triton server answers at 'x://y'"):
        TritonEngine("x://y")


@needs_server
def test_metrics_count_the_requests(server: TritonServer) -> None:
    def count() -> float:
        with urllib.request.urlopen(server.metrics, timeout=10) as answer:
            text = answer.read().decode()
        (found,) = re.findall(
            r'^nv_inference_request_success\{model="roberta",.*\} (\S+)$', text, re.MULTILINE
        )
        return float(found)

    before = count()
    with TritonClient(server, "http") as client:
        for _ in range(3):
            client.infer("roberta", given("roberta", [[5, 6]]))
    end = time.monotonic() + 20  # counted after they are answered
    while count() < before + 3 and time.monotonic() < end:
        time.sleep(0.05)
    assert count() == before + 3


@needs_server
def test_a_second_server_on_the_same_ports_is_refused(
    server: TritonServer, repository: Path
) -> None:
    taken = replace(free_ports(), grpc=server.ports.grpc)
    with (
        pytest.raises(UsageError, match=f"port {server.ports.grpc} is in use"),
        serving(repository, taken),
    ):
        pass


@needs_server
@pytest.mark.slow
def test_a_server_starts_again_and_knows_nothing_of_before(tmp_path: Path) -> None:
    repository = write_served("mixed", tmp_path)
    rows = [[5, 6, 7], [8, 9]]
    answers = []
    for _ in range(2):
        with serving(repository) as running, TritonClient(running, "http") as client:
            answers.append(client.infer("mixed", given("mixed", rows)))
        assert running.process.poll() is not None
        assert not list(Path("/dev/shm").glob(f"{running.log.parent.name}*"))
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_allclose(answers[0], alone(repository, "mixed", rows), atol=1e-5)


@needs_server
@pytest.mark.slow
def test_a_repository_that_fails_its_warm_up_is_not_served(tmp_path: Path) -> None:
    """The warm-up runs: with rows that are no whole groups the engine refuses it.

    This server then says so, or at times crashes: it must not be taken for ready.
    """
    config = write_served("mixed", tmp_path) / "mixed_engine" / "config.pbtxt"
    config.write_text(config.read_text().replace("batch_size: 9", "batch_size: 8"))
    with (
        pytest.raises(PrumuxError, match=r"Triton ended with exit code (1|-11)"),
        serving(tmp_path / "triton"),
    ):
        pass


def start(repository: Path, wheel: Path) -> None:
    with serving(repository, wheel=wheel):
        pass


def test_what_cannot_be_served_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = tmp_path / "wheel"
    with pytest.raises(MissingError, match=r"wheel' holds no Triton server: pip install"):
        start(tmp_path, wheel)
    binary = wheel / "pytriton" / "tritonserver" / "bin" / "tritonserver"
    binary.parent.mkdir(parents=True)
    binary.write_text("")
    with pytest.raises(MissingError, match=rf"no stub for Python 3\.{sys.version_info[1]}"):
        start(tmp_path, wheel)
    stubs = binary.parents[1] / "python_backend_stubs"
    stub = stubs / f"3.{sys.version_info[1]}" / "triton_python_backend_stub"
    stub.parent.mkdir(parents=True)
    stub.write_text("")
    with pytest.raises(UsageError, match=r"holds no \*/config.pbtxt: give a result's triton/"):
        start(tmp_path, wheel)
    model = served_model("plain")
    graph_file.save(build(model), tmp_path)
    write_bundle(model.encoder, model.task, tmp_path / "model.onnx", tmp_path / "triton")
    line = [str(tmp_path / "triton"), "--wheel", str(wheel)]
    assert guarded(MODULE, main, line, "repeat the command") == 2
    said = capsys.readouterr().err
    assert guarded(MODULE, main, [*line, "--port", "65534"], "") == 2
    assert "--port is 65534: use 1..65533" in capsys.readouterr().err
    assert "'prumux_engine' needs Triton's backend onnxruntime" in said
    assert "--target 'onnx{triton=python}'" in said
