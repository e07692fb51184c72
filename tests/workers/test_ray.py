"""Real workers: Ray on this machine, and a cluster of two machines, one of them lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from prumux.optimizer.base.errors import MissingError
from prumux.optimizer.cli.opt import main
from prumux.optimizer.run import inputs as opening
from prumux.optimizer.workers import ray_cluster as cluster
from prumux.optimizer.workers import workers
from tests.helpers import searches

ray: Any = pytest.importorskip("ray", reason="needs prumux[ray]")
pytestmark = [
    pytest.mark.slow,
    # Ray's own: sockets and processes that it leaves to the garbage collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SPACE = "pool-early,prune{sparsity=0.1|0.2|0.3|0.5|0.7|0.9 of=macs},slice,distill{epochs=2}"
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "3",
}
"""A machine that died is missed within seconds."""
SMALL = {"object_store_memory": 100 * 2**20, "include_dashboard": False}


@pytest.fixture(scope="module", autouse=True)
def _settings() -> Iterator[None]:
    """One thread for a trial, here and there; and workers that find the code and the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "cpu_threads", lambda: 1)
        for name, value in cluster.SETTINGS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    given = searches.given(tmp_path_factory.mktemp("job"))
    return given | {"passes": SPACE, "budget": searches.budget("20%")}


@pytest.fixture(scope="module")
def alone(
    options: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, _settings: None
) -> searches.Searched:
    return searches.searched(options, tmp_path_factory.mktemp("alone") / "out")


def test_two_processes_of_this_machine(
    options: dict[str, Any], alone: searches.Searched, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    alone.same_as(searches.searched(options, tmp_path / "out", 2))
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A head that computes nothing, and two machines with a processor each."""
    from ray.cluster_utils import Cluster

    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    try:
        yield made, [made.add_node(num_cpus=1, **SMALL) for _ in range(2)]
    finally:
        ray.shutdown()
        made.shutdown()


def trials_below(node: Any) -> list[int]:
    """Processes of a machine that are at a trial, by the title that Ray gives them."""
    (raylet,) = [x.process.pid for x in node.all_processes.get("raylet", [])] or [0]
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((place / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == raylet and b"ray::_work" in (place / "cmdline").read_bytes():
                found.append(int(place.name))
        except OSError:
            continue  # it has just ended
    return found


def test_a_machine_that_dies_in_mid_trial_costs_only_time(
    options: dict[str, Any],
    alone: searches.Searched,
    machines: Any,
    tmp_path: Path,
) -> None:
    made, nodes = machines
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    died: list[int] = []

    def lose_one() -> None:
        until = time.monotonic() + 60
        while not (at_work := trials_below(nodes[0])) and time.monotonic() < until:
            time.sleep(0.02)
        died.extend(at_work)
        made.remove_node(nodes[0], allow_graceful=False)

    thread = threading.Thread(target=lose_one)
    thread.start()
    found = searches.searched(options, tmp_path / "out", 2)
    thread.join()
    assert died, "it was not in mid-trial"
    assert not trials_below(nodes[0])
    alone.same_as(found)
    assert ray.is_initialized(), "it was not ours to end"


def test_when_all_machines_die_the_search_goes_on_here(
    options: dict[str, Any],
    alone: searches.Searched,
    machines: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made, nodes = machines
    ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
    monkeypatch.setattr(cluster, "LOOK_S", 1.0)
    real = cluster.RayCluster.start

    def start(self: Any, job: Any, files: Any) -> Any:
        handle = real(self, job, files)
        while nodes:
            made.remove_node(nodes.pop(), allow_graceful=False)
        return handle

    monkeypatch.setattr(cluster.RayCluster, "start", start)
    alone.same_as(searches.searched(options, tmp_path / "out", 2))


def test_nobody_answers(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    started = time.monotonic()
    command = ["m", "--budget", "2%", "--workers"]
    assert main([*command, "ray://127.0.0.1:1"]) == 5
    assert main([*command, "ray://no-such-host.invalid:10001"]) == 5
    said = capsys.readouterr().err
    assert "no Ray cluster answers at ray://127.0.0.1:1" in said
    assert "ray start --head" in said
    assert time.monotonic() - started < 2 * workers.ANSWER_S + 5


def test_something_else_answers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("grpc")
    monkeypatch.setattr(workers, "ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"ray://127.0.0.1:{server.getsockname()[1]}"
        assert main(["m", "--budget", "2%", "--workers", address]) == 5
    assert "it does not speak as Ray does" in capsys.readouterr().err


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_an_address(options: dict[str, Any], alone: searches.Searched, tmp_path: Path) -> None:
    """Ray's client, which is how a cluster elsewhere is reached; in a process of its own."""
    pytest.importorskip("grpc")
    port = free_port()
    ray_command = [sys.executable, "-m", "ray.scripts.scripts"]
    arguments = [
        *("start", "--head", "--num-cpus=1", "--include-dashboard=false", "--block"),
        *(f"--port={free_port()}", f"--ray-client-server-port={port}"),
        f"--object-store-memory={SMALL['object_store_memory']}",
    ]
    environment = os.environ | {"RAY_TMPDIR": str(tmp_path)[:40]}
    log = (tmp_path / "log").open("w")
    head = subprocess.Popen(
        [*ray_command, *arguments], stdout=log, stderr=log, env=environment, process_group=0
    )
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            try:
                workers.Workers.parse(f"ray://127.0.0.1:{port}").check()
                break
            except MissingError:
                time.sleep(0.5)
        alone.same_as(searches.searched(options, tmp_path / "out", f"ray://127.0.0.1:{port}"))
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):  # it is not quick to go
            os.killpg(head.pid, number)
            with suppress(subprocess.TimeoutExpired):
                head.wait(5)
        log.close()
