"""Settings of every test."""

import os

import torch
from hypothesis import settings

from prumux.export.benchmark import text
from prumux.optimizer.search import precision_choice
from prumux.optimizer.timing import interleave, own_batches, serving_point

# Models here are tiny: on a busy machine two threads that wait for each other take ten times
# as long as one. Each of several workers has a processor of its own, and engines and
# processes that it starts stay there.
torch.set_num_threads(1)
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    PROCESSORS = sorted(os.sched_getaffinity(0))
    NUMBER = int(WORKER.removeprefix("gw"))
    os.sched_setaffinity(0, {PROCESSORS[NUMBER % len(PROCESSORS)]})

# No test asserts a time, so none need wait for a quiet machine, repeat short runs, or time
# many rounds and texts.
interleave.SETTLE_CHECKS = 0
interleave.LEAST_MS = 0.0
serving_point.ROUNDS = precision_choice.ROUNDS = 3
serving_point.SINGLE_ROUNDS = own_batches.PROBES = 1
serving_point.SINGLE_ROWS = 8
own_batches.ROUNDS = 2
text.LEAST_TEXTS = 1
# Nor does a slow example mean that a law is broken.
settings.register_profile("prumux", deadline=None)
settings.load_profile("prumux")
