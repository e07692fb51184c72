"""Cascades in torch: a larger model answers the rows on which a small model is unsure.

    z = first(x)                       logits of every row, [B, C]
    m_i = z_i(1) - z_i(2)              the margin between the two best logits of row i
    deferred = {i : m_i < t}           at most ceil(s B) of them, smallest margins first
    z_i = second(x_i)                  for deferred i

The rule that chooses the deferred rows is in `row_groups.py`, because engines use it, too. The
ONNX graph of a cascade computes the same function, see `export/graph/compose.py`. There is no
temperature: it would divide all margins by one number and not change the deferred rows.
Source: Wang et al. 2020, https://arxiv.org/abs/2012.01988
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from prumux.optimizer.base.errors import PassError
from prumux.optimizer.tasks.task import Task

from . import row_groups
from .families.registry import family_of
from .model import Model
from .module import EncoderModule
from .sizes import Encoder

ALL = float(np.finfo(np.float32).max)
"""The threshold that defers every row."""
NEAR = 0.005
"""Largest difference between the share of deferred rows and the requested share."""
Logits = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""Maps ids, mask and token types, [B, T] each, to logits [B, C]."""


def check_given(task: Task, encoder: Encoder) -> None:
    """Check that a cascade fits the task and the family.

    The task needs one answer per row, out of two classes or more.

    Raises:
        PassError: the task or the family does not fit. The message names it.
    """
    if not family_of(encoder).runs_empty:
        raise PassError(
            "a second stage often gets no rows, and ONNX Runtime runs no "
            f"{encoder.family} model without rows: leave 'cascade' out",
            exit_code=2,
        )
    if not has_margins(task):
        raise PassError(
            "cascade needs one answer a row, out of two classes or more: it defers rows by "
            "the margin between the two best\n"
            f"this is a {task.name} model: leave 'cascade' out",
            exit_code=2,
        )


def has_margins(task: Task) -> bool:
    """True if every row has one answer, out of two classes or more."""
    return not task.ragged and task.has_classes and task.exclusive and len(task.labels) > 1


def deferred(logits: Tensor, threshold: float, max_share: float = 1.0) -> Tensor:
    """Indices of the rows that the second stage answers, see `row_groups.deferred_rows`."""
    values = logits.detach().float().cpu().numpy()
    rows = row_groups.deferred_rows(values, threshold, max_share)
    return torch.as_tensor(rows, device=logits.device)


def answer(  # noqa: PLR0917 - both stages, their rule and their inputs
    first: Logits,
    second: Logits,
    threshold: float,
    max_share: float,
    input_ids: Tensor,
    attention_mask: Tensor,
    token_type_ids: Tensor | None,
) -> Tensor:
    """Logits [B, C] of a cascade. The second stage runs only if rows are deferred."""
    logits = first(input_ids, attention_mask, token_type_ids)
    rows = deferred(logits, threshold, max_share)
    if not len(rows):
        return logits
    types = None if token_type_ids is None else token_type_ids[rows]
    found = second(input_ids[rows], attention_mask[rows], types)
    return logits.index_copy(0, rows, found)


def threshold_at(margins: NDArray[np.float32], share: float) -> float:
    """The threshold that is above about this share of the margins.

    The threshold is the middle of the widest gap between neighbouring margins near that share.
    Rounding errors then move few rows across it. The threshold is rounded to float32, so torch
    and ONNX compare with the same number.

    Args:
        margins: margins of rows, [N], N >= 1.
        share: share of rows to defer, in [0, 1]; 0 defers no row, 1 defers all rows.
    """
    count, given = round(share * len(margins)), np.sort(margins).astype(np.float64)
    if share <= 0 or count == 0:
        return 0.0
    if share >= 1 or count == len(given):
        return ALL
    near = int(NEAR * len(given))
    counts = np.arange(max(1, count - near), min(len(given) - 1, count + near) + 1)
    gaps = given[counts] - given[counts - 1]
    best = counts[np.argmax(gaps)]
    return float(np.float32((given[best - 1] + given[best]) / 2))


class CascadeModule(nn.Module):
    """Runs a `Model` with a second stage."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        if model.second is None:
            raise ValueError("the model has no second stage: use EncoderModule")
        self.first = EncoderModule(model)
        self.second = EncoderModule(model.second.model)
        self.rule = model.second.threshold, model.second.max_share

    @property
    def sizes(self) -> Encoder:
        """The sizes of the first stage."""
        return self.first.sizes

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        token_type_ids: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, C]. Arguments as in `EncoderForward.forward`."""
        threshold, most = self.rule
        return answer(
            self.first, self.second, threshold, most, input_ids, attention_mask, token_type_ids
        )


def module_of(model: Model) -> EncoderModule | CascadeModule:
    """The torch module that runs a model, including its second stage if there is one."""
    return EncoderModule(model) if model.second is None else CascadeModule(model)
