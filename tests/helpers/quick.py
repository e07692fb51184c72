"""What makes whole runs quick in tests: few timings, and imports before processes fork."""

from __future__ import annotations

from prumux.export.benchmark import choose, run, text
from prumux.optimizer.search import precision_choice
from prumux.optimizer.timing import interleave, own_batches, serving_point

IMPORTED = (
    "prumux.commands",
    "prumux.optimizer.cli.opt",
    "prumux.optimizer.run.run",
    "prumux.export.onnx",
    "prumux.passes.bag",
    "prumux.passes.reconstruct",
    "onnxruntime.transformers.optimizer",
    "transformers.models.auto",
    "jinja2",
)
"""Most of what a run of `prumux-opt` imports on its way. It takes longer than a tiny run."""


def time_little() -> None:
    """Neither wait for a quiet machine, nor repeat short runs, nor time many rounds and texts.

    No test asserts a time. Tests of the timing itself set these values anew.
    """
    interleave.SETTLE_CHECKS = 0
    interleave.LEAST_MS = run.LEAST_MS = choose.LEAST_MS = 0.0
    serving_point.ROUNDS = precision_choice.ROUNDS = 3
    serving_point.SINGLE_ROUNDS = own_batches.PROBES = 1
    serving_point.SINGLE_ROWS = 8
    own_batches.ROUNDS = 2
    text.LEAST_TEXTS = 1
