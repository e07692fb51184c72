"""Settings of every test."""

import torch

# Models here are tiny: on a busy machine two threads that wait for each other take ten times
# as long as one.
torch.set_num_threads(1)
