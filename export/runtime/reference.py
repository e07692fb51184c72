"""The torch module's logits on the serving workload: the reference for every engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prumux.export.graph.parity import Parity, compare
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.cascade import CascadeModule, module_of
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import run
from prumux.optimizer.model.row_groups import margins, most_rows
from prumux.optimizer.pipeline.target import Engine

Floats = NDArray[np.float32]
EDGE = 1e-3
"""Largest distance of a margin from a cascade's threshold at which either stage may answer:
engines round differently."""


class TorchReference:
    """Logits of the torch module. They are computed once, for any number of engines."""

    def __init__(self, model: Model, workload: Sequence[Batch], edge: float = 0) -> None:
        """Run the torch module.

        Args:
            model: a model without masks.
            workload: at least one batch.
            edge: for cascades of engines that round more, a larger `EDGE`.
        """
        self.task = model.task
        self.inputs = [batch.inputs() for batch in workload]
        module = module_of(model).eval()
        self.logits = [run(module, inputs) for inputs in self.inputs]
        """Logits of each batch, float32 [B, C] or [B, T, C]."""
        self._others: list[tuple[NDArray[np.bool_], Floats, Floats]] = []
        if isinstance(module, CascadeModule):
            self._others = [
                _at_the_edge(module, inputs, max(edge, EDGE)) for inputs in self.inputs
            ]

    def compare(self, engine: Engine) -> Parity:
        """Run an engine on the same batches and compare its logits with the torch module's."""
        found = [engine.run(inputs) for inputs in self.inputs]
        masks = [inputs["attention_mask"] for inputs in self.inputs]
        expected = list(self.logits)
        for i, (edge, one, two) in enumerate(self._others):
            near = np.where(_nearer(one, two, found[i])[:, None], one, two)
            expected[i] = np.where(edge[:, None], near, expected[i])
        return compare(expected, found, self.task, masks)


def _at_the_edge(
    module: CascadeModule, inputs: Mapping[str, NDArray[Any]], width: float
) -> tuple[NDArray[np.bool_], Floats, Floats]:
    """Mask of rows that either stage may answer, [B], and both stages' logits of all rows."""
    one, two = run(module.first, inputs), run(module.second, inputs)
    threshold, max_share = module.rule
    margin = margins(one)
    edge = np.abs(margin - threshold) < width
    most = most_rows(len(margin), max_share)
    if most < (margin < threshold).sum():
        last, next_ = np.sort(margin)[most - 1 : most + 1]
        edge |= (np.abs(margin - last) < width) | (np.abs(margin - next_) < width)
        if next_ - last > width:  # the gap is too large: rounding cannot change the order
            edge &= np.abs(margin - threshold) < width
    return edge, one, two


def _nearer(one: Floats, two: Floats, found: Floats) -> NDArray[np.bool_]:
    """Mask of rows whose logits `found` are nearer to the logits `one`, [B]."""
    nearer: NDArray[np.bool_] = np.abs(found - one).max(-1) <= np.abs(found - two).max(-1)
    return nearer
