"""Settings of every test."""

import torch

from prumux.optimizer.timing import interleave as measure

# Models here are tiny: on a busy machine two threads that wait for each other take ten times
# as long as one.
torch.set_num_threads(1)

# No test asserts a time, so none need wait for a quiet machine, or repeat short runs.
measure.SETTLE_CHECKS = 0
measure.LEAST_MS = 0.0
