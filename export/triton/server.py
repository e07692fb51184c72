"""Run a Triton server without Docker: the server in the wheel `nvidia-pytriton`.

    pip install --no-deps --target ~/triton-server nvidia-pytriton 'numpy<2'
    python -m prumux.export.triton.server my-model-prumux/triton --wheel ~/triton-server

This server only has Triton's Python backend. So it serves repositories that
`--target 'onnx{triton=python}'` wrote. It runs on Linux on x86-64. Its Python backend was
built for numpy 1 and reads wrong values with numpy 2, so the wheel has its own folder.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prumux.optimizer.base.errors import MissingError, PrumuxError, UsageError
from prumux.optimizer.cli.console import guarded

HOST = "127.0.0.1"
BACKEND = "python"
SHARED_MEMORY = Path("/dev/shm")
SERVER = Path("pytriton") / "tritonserver"
WHEEL = Path(os.environ.get("PRUMUX_TRITON_SERVER") or Path(sys.prefix) / "triton-server")
"""The default folder of the wheel; `make triton` installs it there."""
START_SECONDS = 60
STOP_SECONDS = 20
LOG_LINES = 3
MODULE = "prumux.export.triton.server"


@dataclass(frozen=True)
class Ports:
    """TCP ports of a server."""

    http: int = 8000
    grpc: int = 8001
    metrics: int = 8002


@dataclass(frozen=True, eq=False)
class TritonServer:
    """A running server. Its models are ready."""

    process: subprocess.Popen[bytes]
    ports: Ports
    log: Path

    @property
    def http(self) -> str:
        """Address for `tritonclient.http`."""
        return f"{HOST}:{self.ports.http}"

    @property
    def grpc(self) -> str:
        """Address for `tritonclient.grpc`."""
        return f"{HOST}:{self.ports.grpc}"

    @property
    def metrics(self) -> str:
        """URL of the metrics in the text format of Prometheus."""
        return f"http://{HOST}:{self.ports.metrics}/metrics"


@contextmanager
def serving(
    repository: Path, ports: Ports | None = None, wheel: Path = WHEEL
) -> Iterator[TritonServer]:
    """Serve a model repository while the block runs.

    Args:
        repository: the folder `triton/` of a result.
        ports: TCP ports; by default three free ports.
        wheel: folder of the wheel and numpy 1. Models import from this folder first.

    Raises:
        MissingError: the wheel is not installed, or has no server for this Python.
        UsageError: the repository needs a backend that this server does not have, or a port
            is in use.
        PrumuxError: the server ended or was not ready in time; the message has the log's end.
    """
    _check_wheel(wheel)
    _check_backends(repository)
    ports = ports or free_ports()
    _check_ports(ports)
    with tempfile.TemporaryDirectory(prefix="triton-") as folder:
        place = Path(folder)
        server = TritonServer(_start(wheel, repository, ports, place), ports, place / "log")
        try:
            _wait(server)
            yield server
        finally:
            _stop(server.process)
            for file in SHARED_MEMORY.glob(f"{place.name}*"):  # a killed server leaves them
                file.unlink(missing_ok=True)


def free_ports() -> Ports:
    """Find three free ports."""
    sockets = [socket.socket() for _ in range(3)]
    try:
        for each in sockets:
            each.bind((HOST, 0))
        return Ports(*(each.getsockname()[1] for each in sockets))
    finally:
        for each in sockets:
            each.close()


def _check_ports(ports: Ports) -> None:
    """Check that the ports are free. Otherwise another server could be taken for this one."""
    for port in (ports.http, ports.grpc, ports.metrics):
        with socket.socket() as each:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                each.bind((HOST, port))
            except OSError as error:
                raise UsageError(f"port {port} is in use: give another --port") from error


def _check_wheel(wheel: Path) -> None:
    install = f"pip install --no-deps --target {wheel} nvidia-pytriton 'numpy<2'"
    if not (wheel / SERVER / "bin" / "tritonserver").is_file():
        raise MissingError(f"'{wheel}' holds no Triton server: {install}")
    if not _stub(wheel).is_file():
        python = ".".join(map(str, sys.version_info[:2]))
        raise MissingError(
            f"the server in '{wheel}' has no stub for Python {python}: {install}"
        )


def _stub(wheel: Path) -> Path:
    """Path of the program that runs Python models, for this version of Python."""
    version = ".".join(map(str, sys.version_info[:2]))
    return wheel / SERVER / "python_backend_stubs" / version / "triton_python_backend_stub"


def _check_backends(repository: Path) -> None:
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise UsageError(f"'{repository}' holds no */config.pbtxt: give a result's triton/")
    for config in configs:
        text = config.read_text(encoding="utf-8")
        for backend in re.findall(r'^backend: "(.*)"$', text, re.MULTILINE):
            if backend != BACKEND:
                raise UsageError(
                    f"'{config.parent.name}' needs Triton's backend {backend}, this server "
                    f"has only {BACKEND}\nrun Triton's image, as {repository / 'README.md'} "
                    "says, or write the result with --target 'onnx{triton=python}'"
                )


def _start(
    wheel: Path, repository: Path, ports: Ports, place: Path
) -> subprocess.Popen[bytes]:
    models = place / "models"  # the Python backend takes no spaces in a path
    models.symlink_to(repository.resolve())
    backend = place / "backends" / BACKEND
    backend.mkdir(parents=True)
    # The wheel has the stubs of all Pythons in another folder. The backend needs one nearby.
    for file in (*(wheel / SERVER / "backends" / BACKEND).glob("*.*"), _stub(wheel)):
        (backend / file.name).symlink_to(file.resolve())
    libraries = wheel.resolve() / "nvidia_pytriton.libs"
    environment = os.environ | {
        "LD_LIBRARY_PATH": _joined([str(libraries)], "LD_LIBRARY_PATH"),
        "PATH": _joined([str(_python(wheel, place / "python"))], "PATH"),
    }
    command = [
        str(wheel / SERVER / "bin" / "tritonserver"),
        f"--model-repository={models}",
        f"--backend-directory={place / 'backends'}",
        # With the same name, two servers on one machine would share their memory.
        f"--backend-config=python,shm-region-prefix-name={place.name}",
        *(f"--{kind}-address={HOST}" for kind in ("http", "grpc", "metrics")),
        f"--http-port={ports.http}",
        f"--grpc-port={ports.grpc}",
        f"--metrics-port={ports.metrics}",
        "--exit-timeout-secs=5",
    ]
    with (place / "log").open("wb") as log:
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )


def _python(wheel: Path, place: Path) -> Path:
    """Make a folder with a Python that imports from the wheel's folder first.

    The stub uses the first `python3` on PATH and its virtual environment, but not PYTHONPATH.
    """
    programs = place / "bin"
    version = ".".join(map(str, sys.version_info[:2]))
    packages = place / "lib" / f"python{version}" / "site-packages"
    programs.mkdir(parents=True)
    packages.mkdir(parents=True)
    (programs / "python3").symlink_to(sys.executable)
    home = Path(sys.base_prefix) / "bin"
    (place / "pyvenv.cfg").write_text(f"home = {home}\n", encoding="utf-8")
    path = [str(wheel.resolve()), *(x for x in sys.path if x)]
    (packages / "path.pth").write_text("\n".join(dict.fromkeys(path)), encoding="utf-8")
    return programs


def _joined(first: list[str], variable: str) -> str:
    return os.pathsep.join([*first, *filter(None, [os.environ.get(variable)])])


def _wait(server: TritonServer) -> None:
    """Return when the server and all its models are ready."""
    url = f"http://{server.http}/v2/health/ready"
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise PrumuxError(
                f"Triton ended with exit code {server.process.returncode}\n{_end(server.log)}"
            )
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.05)
    raise PrumuxError(f"Triton was not ready after {START_SECONDS} s\n{_end(server.log)}")


def _end(log: Path) -> str:
    """The last errors of the log; without errors, its last lines."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [x for x in lines if re.match(r"E\d{4} |error", x)]
    return "\n".join((errors or lines)[-LOG_LINES:])


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def main(arguments: list[str]) -> int:
    """Serve a repository until the user ends the server. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=f"python -m {MODULE}")
    parser.add_argument("repository", type=Path, help="the folder triton/ of a result")
    parser.add_argument(
        "--port",
        type=int,
        default=Ports.http,
        help="of HTTP; gRPC's is one, metrics' two more",
    )
    parser.add_argument("--wheel", type=Path, default=WHEEL, help="folder of the wheel")
    given = parser.parse_args(arguments)
    if not 1 <= given.port <= 65533:
        raise UsageError(f"--port is {given.port}: use 1..65533")
    ports = Ports(given.port, given.port + 1, given.port + 2)
    with serving(given.repository, ports, given.wheel) as server:
        sys.stdout.write(f"ready: HTTP {server.http}, gRPC {server.grpc}\n")
        sys.stdout.flush()
        code = server.process.wait()
        if code:
            raise PrumuxError(f"Triton ended with exit code {code}\n{_end(server.log)}")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(MODULE, main, None, "repeat the command"))
