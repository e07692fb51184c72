"""Learners for several processes; what is here can be imported in each of them."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from prumux.optimizer.base import bfloat16 as precision
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.row_groups import batch_rows
from prumux.optimizer.pipeline.context import Context
from prumux.optimizer.tasks.labels import IGNORE
from prumux.passes.distill import Distill, Student
from prumux.passes.gates.expected_cost import CountedBudget
from prumux.passes.gates.mask_learner import MaskLearner
from prumux.passes.learn_masks import LearnMasks
from prumux.passes.multiplexing.retrieval import RetrievalLearner
from prumux.passes.pruning.importance import fisher
from prumux.passes.training.data_parallel import DataParallel
from prumux.passes.warm_up import WarmUp
from tests.helpers.factory import make_context, multiplexed, random_batch, random_model
from tests.helpers.masking import masked

ROWS = 33
BATCH = 6
assert batch_rows(BATCH, 2) == BATCH
SIZES: dict[str, Any] = {"heads": (3, 2), "ffn": (8, 8), "hidden": 12}


def context(**fields: Any) -> Context:
    """Rows of which a third has no label: 33, so an epoch of pairs ends in a batch of one."""
    dense = random_model(**SIZES)
    fit = make_context(dense, random_batch(dense, rows=ROWS, length=10)).fit
    labels = np.where(np.arange(ROWS) % 3, np.arange(ROWS) % 2, IGNORE)
    return make_context(dense, **{"fit": replace(fit, labels=labels), **fields})


class Several:
    """Learners of all kinds as one; they share batches and nothing else."""

    slots = 2

    def __init__(self, ctx: Context) -> None:
        model, rows = ctx.dense, ctx.fit
        tokens = random_model(**SIZES, task="token-classification", seed=1)
        small = masked(model, seed=1)
        soft = Distill(labels=0)
        masks, warm_up = LearnMasks(sparsity=0.5), WarmUp(tokens=1.0)
        budget = CountedBudget(model.encoder, model.encoder, 0.5, "weights", 8)
        scores = fisher(model, ctx)
        self.parts: dict[str, Student | MaskLearner | RetrievalLearner] = {
            "plain": Student(small, Distill(), rows, ctx),
            "tokens": Student(masked(tokens, seed=2), soft, rows, replace(ctx, dense=tokens)),
            "mixed": Student(multiplexed(model, at=1), Distill(), rows, ctx),
            "masks": MaskLearner(
                model, masks, masks.gating, budget, rows=rows, scores=scores, ctx=ctx
            ),
            "warm-up": RetrievalLearner(
                multiplexed(model), warm_up.weights, warm_up.lr, rows, ctx
            ),
        }
        self.stop_at = self.steps = -1

    def groups(self) -> list[dict[str, Any]]:
        return [group for part in self.parts.values() for group in part.groups()]

    def loss(self, batch: Batch, progress: float, parallel: DataParallel) -> Tensor:
        self.steps += 1
        if self.steps == self.stop_at:
            raise KeyboardInterrupt
        losses = [part.loss(batch, progress, parallel) for part in self.parts.values()]
        return torch.stack(losses).sum()

    def validation_loss(self) -> float:
        return sum(part.validation_loss() for part in self.parts.values())


def elsewhere(*, ctx: Context) -> Several:
    """All of them in another process, where float32 is float32 as well."""
    patch.object(precision, "fast_bf16", return_value=False).start()
    return Several(ctx)


class Faulty:
    """Fits a number; what goes wrong does so in the other process, at the third step."""

    slots = 1

    def __init__(self, fault: str = "") -> None:
        self.value, self.fault, self.steps = nn.Parameter(torch.zeros(1)), fault, 0

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": [self.value], "lr": 0.1}]

    def loss(self, batch: Batch, progress: float, parallel: DataParallel) -> Tensor:
        self.steps += 1
        if self.steps == 3 and self.fault == "raises":
            raise ValueError("the loss is out of range\nsecond line")
        if self.steps == 3 and self.fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        return parallel.mean((self.value - 1).square().sum(), len(batch.rows))

    def validation_loss(self) -> float:
        return abs(self.value.item() - 1)


def broken(*, ctx: Context) -> Faulty:
    """Cannot be built."""
    raise ValueError(f"no {ctx.device} will do")


def faulty(fault: str, device: str = "", *, ctx: Context) -> Faulty:
    """One that fails so in other processes: in all of them, or in the one for `device`."""
    return Faulty(fault if device in ("", ctx.device) else "")
