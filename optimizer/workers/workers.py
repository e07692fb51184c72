"""The option `--workers`. Ray is imported only for more than one worker."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from importlib.util import find_spec

from prumux.optimizer.base.devices import DEVICE
from prumux.optimizer.base.errors import MissingError, UsageError

MOST = 1000
ANSWER_S = 5.0
"""Seconds in which a cluster must answer."""
ADDRESS = re.compile(r"ray://(?P<host>[\w.-]+|\[[\da-fA-F:]+\]):(?P<port>\d{1,5})")
UNUSED = (
    "--workers: {why}, so there is nothing to run ahead of it\n"
    "name alternatives, to build or train them side by side, such as\n"
    "--passes 'prune{{sparsity=0.5|0.7}},slice,distill{{epochs=3}}' --budget 2%"
)
"""Message when workers cannot help."""


@dataclass(frozen=True)
class Workers:
    """A number of processes on this machine, or a Ray cluster."""

    count: int = 1
    address: str | None = None

    @classmethod
    def parse(cls, given: object) -> Workers:
        """Read a number of processes, or the address of a cluster.

        Raises:
            UsageError: the value is no whole number from 1, and no ray://HOST:PORT.
        """
        text = "1" if given is None else str(given)
        if isinstance(given, bool):
            text = repr(given)
        if re.fullmatch(r"\d{1,4}", text) and 1 <= int(text) <= MOST:
            return cls(count=int(text))
        found = ADDRESS.fullmatch(text)
        if found and 0 < int(found["port"]) < 2**16:
            return cls(address=text)
        raise UsageError(
            f"workers is {text[:80]!r}: give a whole number from 1 to {MOST}, or the address "
            "of a Ray cluster\nwrite --workers 4 or --workers ray://HOST:10001"
        )

    @property
    def here_only(self) -> bool:
        """True if there are no workers, so that this process does all the work."""
        return self.address is None and self.count == 1

    def check_device(self, device: object) -> None:
        """Check that workers can train on a device.

        Raises:
            UsageError: the value is no device name, or workers cannot choose this device.
        """
        if not re.fullmatch(DEVICE, str(device)):
            raise UsageError(
                f"device is {device!r}, it must be 'auto', 'cpu', 'cuda' or such as 'cuda:0'"
            )
        if ":" in str(device) and not self.here_only:
            raise UsageError(
                f"device is {device!r}, but Ray gives each worker a GPU of its own\n"
                f"write --workers {self} --device cuda"
            )

    def check(self) -> None:
        """Check within seconds that the workers are available.

        Raises:
            MissingError: Ray is not installed, or no cluster answers at the address.
        """
        if self.here_only:
            return
        needed = ("ray",) if self.address is None else ("ray", "grpc")
        for name in needed:
            if find_spec(name) is None:
                raise MissingError(
                    f"--workers {self} needs Ray, and '{name}' is not installed\n"
                    "install it: pip install 'prumux[ray]'; or leave --workers out"
                )
        if self.address is not None:
            self._answers(self.address)

    def threads(self, cores: int) -> int:
        """Number of processors for one trial, if `count` trials share `cores` processors."""
        return max(1, cores // self.count)

    def __str__(self) -> str:
        return self.address or str(self.count)

    def _answers(self, address: str) -> None:
        """Open a channel to the cluster now. Ray would hang at another program's port."""
        import grpc

        found = ADDRESS.fullmatch(address)
        assert found is not None
        try:
            socket.create_connection(
                (found["host"].strip("[]"), int(found["port"])), timeout=ANSWER_S
            ).close()
            with grpc.insecure_channel(address.removeprefix("ray://")) as channel:
                grpc.channel_ready_future(channel).result(timeout=ANSWER_S)
        except (OSError, grpc.FutureTimeoutError, UnicodeError) as error:
            why = "it does not speak as Ray does" if not isinstance(error, OSError) else error
            raise MissingError(
                f"no Ray cluster answers at {address} within {ANSWER_S:g} s: {why}\n"
                "start one there: ray start --head --ray-client-server-port "
                f"{found['port']}; or use this machine: --workers 2"
            ) from error
