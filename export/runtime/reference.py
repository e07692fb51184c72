"""The torch module's logits on the serving workload, which every engine is compared with."""

from __future__ import annotations

from collections.abc import Sequence

from prumux.export.graph.parity import Parity, compare
from prumux.optimizer.data.tokenize import Batch
from prumux.optimizer.model.model import Model
from prumux.optimizer.model.module import EncoderModule, run
from prumux.optimizer.pipeline.target import Engine


class TorchReference:
    """Logits of the torch module, computed once and compared with any number of engines."""

    def __init__(self, model: Model, workload: Sequence[Batch]) -> None:
        """Run the torch module.

        Args:
            model: a model without masks.
            workload: at least one batch.
        """
        self.task = model.task
        self.inputs = [batch.inputs() for batch in workload]
        module = EncoderModule(model).eval()
        self.logits = [run(module, inputs) for inputs in self.inputs]
        """float32, [B, C] or [B, T, C] for each batch."""

    def compare(self, engine: Engine) -> Parity:
        """Run an engine on the same batches and compare its logits with the torch module's."""
        found = [engine.run(inputs) for inputs in self.inputs]
        masks = [inputs["attention_mask"] for inputs in self.inputs]
        return compare(self.logits, found, self.task, masks)
