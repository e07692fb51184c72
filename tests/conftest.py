"""Settings of every test."""

import os

import pytest
import torch
from hypothesis import settings

from tests.helpers.quick import time_little

# Models here are tiny: on a busy machine two threads that wait for each other take ten times
# as long as one. Each of several workers has a processor of its own, and engines and
# processes that it starts stay there.
torch.set_num_threads(1)
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    PROCESSORS = sorted(os.sched_getaffinity(0))
    NUMBER = int(WORKER.removeprefix("gw"))
    os.sched_setaffinity(0, {PROCESSORS[NUMBER % len(PROCESSORS)]})

time_little()
# A slow example does not mean that a law is broken.
settings.register_profile("prumux", deadline=None)
settings.load_profile("prumux")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests go first: no worker ends with one while the other waits."""
    slow = {x.path for x in items if x.get_closest_marker("slow")}
    items.sort(key=lambda x: x.path not in slow)
